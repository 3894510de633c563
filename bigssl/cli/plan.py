"""`bigssl plan`: what a run would read, hold and fail at, before a cluster is hired."""

from __future__ import annotations

from cyclopts.types import PositiveInt

from bigssl.cli.app import AllowPartial, Change, fields_of
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import allowing_partial, load_recipe
from bigssl.files import GIB


def plan(
    *overrides: str, config: str, world: PositiveInt, ranks_per_node: PositiveInt = 8, memory: float | None = None,
    gpu: str | None = None, json: bool = False, change: Change = "", allow_partial: AllowPartial = False,
) -> int:  # fmt: skip
    """Exit status 1 when the run would fail, 2 when the recipe cannot be read.

    Args:
        overrides: recipe fields to change, a.b=c
        config: recipe (YAML)
        world: ranks it is meant for
        ranks_per_node: processes that share a machine
        memory: GiB of one device; more than that is a failure
        gpu: card of each rank, e.g. a100-40 or h100-80: also recommends ZeRO stage, offload and micro-batch for it
        json: print one JSON object, sizes in bytes
    """
    from bigssl.cli.recipes import model
    from bigssl.engine.plan.cards.table import card_named
    from bigssl.engine.plan.checks import draft
    from bigssl.engine.plan.report import to_json, to_text

    if gpu is not None and memory is not None:
        raise ConfigError("--memory: given with --gpu, which says how much memory there is; allowed: one of the two")
    recipe = load_recipe(config, list(overrides), model())
    recipe = allowing_partial(recipe) if allow_partial else recipe
    card = None if gpu is None else card_named(gpu)
    device_bytes = card.usable if card is not None else None if memory is None else round(memory * GIB)
    paper = draft(recipe, world, per_node=ranks_per_node, device_bytes=device_bytes,
                  change=fields_of(change), card=card)  # fmt: skip
    print(to_json(paper) if json else to_text(paper, recipe.zero.stage))
    return 1 if paper.failures else 0
