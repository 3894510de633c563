"""`bigssl plan`: what a run would read, hold and fail at, before a cluster is hired."""

from __future__ import annotations

from cyclopts.types import PositiveInt

from bigssl.cli.app import AllowPartial, Change, fields_of
from bigssl.config.recipe import allowing_partial, load_recipe
from bigssl.files import GIB


def plan(
    *overrides: str, config: str, world: PositiveInt, ranks_per_node: PositiveInt = 8, memory: float | None = None,
    json: bool = False, change: Change = "", allow_partial: AllowPartial = False,
) -> int:  # fmt: skip
    """Exit status 1 when the run would fail, 2 when the recipe cannot be read.

    Args:
        overrides: recipe fields to change, a.b=c
        config: recipe (YAML)
        world: ranks it is meant for
        ranks_per_node: processes that share a machine
        memory: GiB of one device; more than that is a failure
        json: print one JSON object, sizes in bytes
    """
    from bigssl.cli.recipes import model
    from bigssl.engine.plan.checks import draft
    from bigssl.engine.plan.report import to_json, to_text

    recipe = load_recipe(config, list(overrides), model())
    recipe = allowing_partial(recipe) if allow_partial else recipe
    device_bytes = None if memory is None else round(memory * GIB)
    paper = draft(recipe, world, per_node=ranks_per_node, device_bytes=device_bytes,
                  change=fields_of(change))
    print(to_json(paper) if json else to_text(paper, recipe.zero.stage))
    return 1 if paper.failures else 0
