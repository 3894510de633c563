"""What may be done about a recipe that is another one than the run folder's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigssl.config.errors import ConfigError
from bigssl.config.places import EXPORT
from bigssl.config.recipe import Recipe, Section
from bigssl.objectives.base import discover
from bigssl.report.changes import read_changes


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a run, whole or not, by step. Where there is none, no run has begun: what a
    first try has left binds nobody."""
    place = folder / "checkpoints"
    found = place.iterdir() if os.path.isdir(place) else []
    return sorted(path for path in found if re.fullmatch(r"step-\d{8,}", path.name))


def ways_out(recipe: Recipe, reasons: Mapping[str, str]) -> str:
    """What a user may do about fields that differ. reasons: why they cannot change; empty: on purpose they can."""
    other = f"another folder, for example out={recipe.folder}-2"
    if (recipe.folder / EXPORT).is_dir():
        other += f" start_from={recipe.folder}/{EXPORT}"
    bad = {key: reason for key, reason in reasons.items() if reason}
    by_flag = f"`--change {','.join(key for key in reasons if key not in bad)}`"
    if not bad:
        return f"the same values; or {by_flag} to go on with the new ones; or {other}"
    said = [f"{key} never changes in a run: {reason}" for key, reason in bad.items()]
    said += [f"what else differs may, by {by_flag}"] if len(bad) < len(reasons) else []
    return f"the same values, or {other} ({'; '.join(said)})"


def refuse_change_of_nothing(recipe: Recipe, change: Sequence[str], *, begun: bool) -> None:
    """Refuse `--change` where there is no state that could be gone on with.

    begun: whether there is a run in the folder.
    Raises:
        ConfigError: with what may be done.
    """
    if not change or (begun and newest_step(recipe) is not None):
        return
    there = (recipe.folder / EXPORT).is_dir()
    other = f"a run that begins with its export: out={recipe.folder}-2 start_from={recipe.folder}/{EXPORT}"
    raise ConfigError(
        f"--change: {recipe.folder} holds no checkpoint of a run that could go on; allowed: "
        f"{other if there else 'without --change'}, or the `out` folder of a run that was begun"
    )


def refuse_other_beginning(recipe: Recipe, stored: Recipe) -> None:
    """The checkpoint goes on; who names another export than the run began with expects something else."""
    asked, used = ({Path(each.start_from).resolve()} if each.start_from else set() for each in (recipe, stored))
    if asked - used:
        before = f"start_from={stored.start_from}, with which it began" if used else "without start_from"
        raise ConfigError(
            f"start_from: value {recipe.start_from!r}, but {recipe.folder} holds a run that goes on from step "
            f"{newest_step(recipe) or 0}; allowed: {before}, or another folder for a run that begins with that export, "
            f"for example out={recipe.folder}-2"
        )


def newest_step(recipe: Recipe) -> int | None:
    """The step of the newest checkpoint of the run folder that was completed; None without one."""
    found = [path for path in checkpoints(recipe.folder) if (path / "manifest.json").exists()]
    return int(found[-1].name.removeprefix("step-")) if found else None


def made_before(recipe: Recipe, now: Mapping[str, Any]) -> list[str]:
    """Fields that were changed in this run on purpose and are `now`, by dotted path, as they were changed to."""
    return [each.field for each in read_changes(recipe.folder) if now.get(each.field) == each.after]


def adjustable_fields(recipe: Recipe) -> list[str]:
    """Patterns of the fields below `objective` that its tasks call `adjustable`."""
    return list(_adjustable("objective", recipe.objective))


def _adjustable(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, Section):
        task = discover().get(getattr(value, "name", ""))
        yield from (f"{path}.{field}" for field in (task.adjustable_in(value) if task is not None else ()))
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _adjustable(f"{path}.{name}", below)
