"""`bigssl config schema|check`."""

from __future__ import annotations

import json

from cyclopts.types import PositiveInt

from bigssl.cli.app import Change, fields_of
from bigssl.config.recipe import Recipe, dump_recipe, load_recipe, recipe_model
from bigssl.data.errors import redact


def model() -> type[Recipe]:
    """The recipe with the sections of all pretext tasks and evaluations."""
    from bigssl.objectives.base import config_union
    from bigssl.transfer.discovery import evaluation_union

    return recipe_model(config_union(), evaluation_union())


def schema() -> None:
    print(json.dumps(model().model_json_schema(), indent=1))


def check(config: str, /, *overrides: str, world: PositiveInt = 1, change: Change = "") -> None:
    """
    Args:
        config: recipe (YAML)
        overrides: fields to change, a.b=c
        world: ranks it is meant for
    """
    from bigssl.engine.plan import preflight

    recipe = load_recipe(config, list(overrides), model())
    plan = preflight.plan(recipe, world, fields_of(change))
    print(redact(dump_recipe(recipe)), end="")
    samples = {name: f"{len(stream)} samples, {plan.sizes[name]} a step" for name, stream in plan.streams.items()}
    for note in plan.notes:
        print(f"# {note}")
    print(f"# fits: {world} ranks x {plan.accum} passes x {plan.micro} samples; {samples}")
