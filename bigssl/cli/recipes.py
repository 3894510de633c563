"""`bigssl config schema|check`."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

from cyclopts.types import PositiveInt

from bigssl.cli.app import AllowPartial, Change, fields_of
from bigssl.config.errors import ConfigError
from bigssl.config.places import CONFIG, seen_from
from bigssl.config.recipe import Recipe, allowing_partial, dump_recipe, load_recipe, recipe_model
from bigssl.data.errors import DataError, redact


def model() -> type[Recipe]:
    """The recipe with the sections of all pretext tasks and evaluations."""
    from bigssl.objectives.base import config_union
    from bigssl.transfer.discovery import evaluation_union

    return recipe_model(config_union(), evaluation_union())


def recipe_of(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a run. Raises ConfigError where `folder` is none of a run."""
    if not folder.exists():
        raise ConfigError(f"{folder}: no such folder{seen_from(folder)}; run folders are under runs/")
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: not a run folder (no {CONFIG} in it); run folders are under runs/")
    return load_recipe(folder / CONFIG, list(overrides), model())


def schema() -> None:
    print(json.dumps(model().model_json_schema(), indent=1))


def check(
    config: str, /, *overrides: str, world: PositiveInt = 1, resolved: bool = False, change: Change = "",
    allow_partial: AllowPartial = False,
) -> None:  # fmt: skip
    """Looks at some samples of each source, too.

    Args:
        config: recipe (YAML)
        overrides: fields to change, a.b=c
        world: ranks it is meant for
        resolved: print the recipe with all its defaults, too
    """
    from bigssl.engine.plan import preflight

    recipe = load_recipe(config, list(overrides), model())
    recipe = allowing_partial(recipe) if allow_partial else recipe
    try:
        plan = preflight.plan(recipe, world, fields_of(change))
    except (ConfigError, DataError) as error:
        raise ConfigError(*_mistakes(recipe, world, fields_of(change), error)) from None
    samples = ", ".join(f"{plan.sizes[name]} of the {len(order):,} of {name}" for name, order in plan.streams.items())
    verdict = f"fits: {world} ranks x {plan.accum} passes x {plan.micro} samples; samples a step: {samples}"
    for line in (verdict, *(f"note: {note}" for note in plan.notes)):
        print(f"# {line}" if resolved else line)
    print(redact(dump_recipe(recipe)) if resolved else "", end="")


def _mistakes(recipe: Recipe, world: int, change: list[str], first: Exception) -> list[str]:
    """All that `plan` finds, `first` in front: a run is refused for the first alone."""
    from bigssl.engine.plan.checks import draft

    with contextlib.redirect_stderr(io.StringIO()):  # what is said there has been said
        failures = draft(recipe, world, per_node=world, device_bytes=None, change=change).failures
    return list(dict.fromkeys(line for text in (str(first), *failures) for line in text.splitlines()))
