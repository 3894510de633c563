"""`bigssl config schema|check`."""

from __future__ import annotations

import contextlib
import io
import json

from cyclopts.types import PositiveInt

<<<<<<< HEAD
from bigssl.cli.app import Change, fields_of
||||||| 316845d
=======
from bigssl.config.errors import ConfigError
>>>>>>> h-c
from bigssl.config.recipe import Recipe, dump_recipe, load_recipe, recipe_model
from bigssl.data.errors import DataError, redact


def model() -> type[Recipe]:
    """The recipe with the sections of all pretext tasks and evaluations."""
    from bigssl.objectives.base import config_union
    from bigssl.transfer.discovery import evaluation_union

    return recipe_model(config_union(), evaluation_union())


def schema() -> None:
    print(json.dumps(model().model_json_schema(), indent=1))


<<<<<<< HEAD
def check(config: str, /, *overrides: str, world: PositiveInt = 1, change: Change = "") -> None:
    """
||||||| 316845d
def check(config: str, /, *overrides: str, world: PositiveInt = 1) -> None:
    """
=======
def check(config: str, /, *overrides: str, world: PositiveInt = 1, resolved: bool = False) -> None:
    """Looks at some samples of each source, too.

>>>>>>> h-c
    Args:
        config: recipe (YAML)
        overrides: fields to change, a.b=c
        world: ranks it is meant for
        resolved: print the recipe with all its defaults, too
    """
    from bigssl.engine.plan import preflight

    recipe = load_recipe(config, list(overrides), model())
<<<<<<< HEAD
    plan = preflight.plan(recipe, world, fields_of(change))
    print(redact(dump_recipe(recipe)), end="")
    samples = {name: f"{len(stream)} samples, {plan.sizes[name]} a step" for name, stream in plan.streams.items()}
    for note in plan.notes:
        print(f"# {note}")
    print(f"# fits: {world} ranks x {plan.accum} passes x {plan.micro} samples; {samples}")
||||||| 316845d
    plan = preflight.plan(recipe, world)
    print(redact(dump_recipe(recipe)), end="")
    samples = {name: f"{len(stream)} samples, {plan.sizes[name]} a step" for name, stream in plan.streams.items()}
    print(f"# fits: {world} ranks x {plan.accum} passes x {plan.micro} samples; {samples}")
=======
    try:
        plan = preflight.plan(recipe, world)
    except (ConfigError, DataError) as error:
        raise ConfigError(*_mistakes(recipe, world, error)) from None
    samples = ", ".join(f"{plan.sizes[name]} of the {len(order):,} of {name}" for name, order in plan.streams.items())
    verdict = f"fits: {world} ranks x {plan.accum} passes x {plan.micro} samples; samples a step: {samples}"
    print(f"# {verdict}\n{redact(dump_recipe(recipe))}" if resolved else verdict, end="" if resolved else "\n")


def _mistakes(recipe: Recipe, world: int, first: Exception) -> list[str]:
    """All that `plan` finds, `first` in front: a run is refused for the first alone."""
    from bigssl.engine.plan.checks import draft

    with contextlib.redirect_stderr(io.StringIO()):  # what is said there has been said
        failures = draft(recipe, world, per_node=world, device_bytes=None).failures
    return list(dict.fromkeys(line for text in (str(first), *failures) for line in text.splitlines()))
>>>>>>> h-c
