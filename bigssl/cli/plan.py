"""`bigssl plan`: what a run would read, hold and fail at, before a cluster is hired."""

from __future__ import annotations

import argparse
from typing import Any

from bigssl.config.recipe import Recipe, load_recipe, recipe_model


def add_command(subparsers: Any) -> None:
    """Adds `plan` to the subparsers of `bigssl`. Its exit status is 1 when the run would fail, 2 when the recipe cannot
    be read."""
    parser = subparsers.add_parser("plan", help="check and simulate a run on any number of ranks, without a GPU")
    parser.add_argument("--config", required=True, help="recipe (YAML)")
    parser.add_argument("--world", type=_positive, required=True, metavar="W", help="ranks it is meant for")
    parser.add_argument("--ranks-per-node", type=_positive, default=8, metavar="N", help="(%(default)s)")
    parser.add_argument("--memory", type=float, metavar="GIB", help="of one device; more than that is a failure")
    parser.add_argument("--json", action="store_true", help="print one JSON object, sizes in bytes")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="recipe fields to change")
    parser.set_defaults(run=_plan)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _plan(options: argparse.Namespace) -> int:
    # imported here: torch and transformers take seconds to load
    from bigssl.engine.plan.checks import GIB, draft
    from bigssl.engine.plan.report import to_json, to_text
    from bigssl.objectives.base import config_union
    from bigssl.transfer.discovery import evaluation_union

    recipe: Recipe = load_recipe(options.config, options.overrides, recipe_model(config_union(), evaluation_union()))
    device_bytes = None if options.memory is None else round(options.memory * GIB)
    paper = draft(recipe, options.world, per_node=options.ranks_per_node, device_bytes=device_bytes)
    print(to_json(paper) if options.json else to_text(paper, recipe.zero.stage))
    return 1 if paper.failures else 0
