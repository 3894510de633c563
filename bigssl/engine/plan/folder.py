"""What lies in the folder of a run before it begins: nothing, a run, what is left of a first try, or something else;
and whether the disk has room for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from torch import nn

from bigssl.config.errors import ConfigError
from bigssl.config.places import CONFIG
from bigssl.config.recipe import CheckpointConfig, Recipe
from bigssl.config.yaml import read_mapping
from bigssl.engine.plan.changes import checkpoints
from bigssl.engine.plan.memory import checkpoint_bytes
from bigssl.files import GIB, bytes_of, existing, remove, writing
from bigssl.report import environment
from bigssl.report.metrics import read_metrics

_PROBE = 1 << 16  # bytes that a run folder has to take at the start
# What a run writes before its first checkpoint, and which files a killed one leaves half written.
FIRST = (
    CONFIG, environment.FILE, "metrics.jsonl", "losses.json", "tensorboard", "ledger-rank*.jsonl", "skipped.jsonl",
    "nonfinite-rank*.txt", "report.html", "started_from.json", "init_from.json",
)  # fmt: skip
HALF = (
    "checkpoints/step-*.tmp", "checkpoints/latest", "checkpoints/.*.tmp", ".*.tmp", ".export.staging", ".scorecard",
)  # fmt: skip
ASIDE = "first-try-"  # and a number: the folder, within that of the run, of what a first try has left
LAST = ("export", ".export.previous", "scorecard.json", "evaluations", "changes.jsonl")  # what it leaves at its end
_BESIDE = (".yaml", ".yml", ".log", ".out", ".err", ".txt")  # what a user may have put there for the run to come


def check_folder(recipe: Recipe) -> bool:
    """Refuse a run folder that cannot be written to; True for one that can."""
    there = recipe.folder
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            recipe.folder.lstat()  # is it a name at all?
        there = existing(recipe.folder)
        with writing(recipe.folder, _PROBE), tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(_PROBE))  # permission bits tell root nothing, and quotas nobody
            file.flush()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"out: value {str(recipe.folder)!r}: {there} cannot be written to ({why}); allowed: a folder with room"
        ) from None
    return True


def refuse_foreign(recipe: Recipe) -> None:
    """Refuse a folder in which a run would mix with, or write over, what is not what a first try of it has left."""
    folder = recipe.folder
    if not os.path.isdir(folder) or checkpoints(folder):
        return
    names = sorted(path.name for path in folder.iterdir())
    _refuse_lost_checkpoints(folder)
    if left := [name for name in names if name in LAST]:
        raise ConfigError(
            f"out: {folder} holds {left[0]} of a run whose checkpoints are gone, which this run would write over; "
            f"allowed: another folder, for example out={folder}-2, or the same one without {', '.join(left)}"
        )
    if not environment.is_recorded(folder) and (strange := [name for name in names if _is_strange(folder / name)]):
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise ConfigError(
            f"out: {folder} holds {strange[0]}{more}, and no run; allowed: a new or empty folder, for example "
            f"out={folder / recipe.name}"
        )


def _refuse_lost_checkpoints(folder: Path) -> None:
    """Where a run got so far that it has saved, they are only out of reach: on a disk that is not mounted, or moved."""
    place = folder / "checkpoints"
    lost = "is no folder (a link that leads nowhere, or a file)"
    if not os.path.lexists(place) or place.is_dir():
        steps = max((row["step"] for row in read_metrics(folder)), default=0) if environment.is_recorded(folder) else 0
        first = _first_due(folder)
        if steps < first or (steps == first and place.is_dir()):  # the attempt to save may have failed
            return
        lost = f"holds none, but {folder}/metrics.jsonl reaches step {steps:.0f}, and the first was due after {first}"
    raise ConfigError(
        f"out: {place} {lost}: the checkpoints of a run are gone or out of reach; allowed: the same folder with them, "
        f"or another one, for example out={folder}-2"
    )


def _first_due(folder: Path) -> int:
    """The step after which a run of the stored recipe saves first."""
    stored = {}
    with contextlib.suppress(ConfigError):
        stored = read_mapping(folder / CONFIG)
    every, steps = (stored.get("checkpoint") or {}).get("every"), stored.get("steps")
    found = [value for value in (every, steps) if isinstance(value, int)]
    return min(found, default=CheckpointConfig().every)


def _is_strange(path: Path) -> bool:
    if path.is_dir() and path.name.startswith(ASIDE):
        return False
    return path.name == CONFIG or path.is_dir() or not (path.name.startswith(".") or path.suffix in _BESIDE)


def clear(folder: Path) -> str:
    """Move aside what a first try without a checkpoint has left, so that it does not mix with the run that begins now;
    what was moved where, in a sentence. Nothing where a run has begun, or where a folder only looks like a first try.
    """
    if checkpoints(folder) or not environment.is_recorded(folder):
        return ""
    for path in [path for pattern in HALF for path in folder.glob(pattern)]:
        remove(path)
    found = [path for pattern in FIRST for path in sorted(folder.glob(pattern))]
    number = 1 + max((int(path.name[len(ASIDE) :]) for path in folder.glob(f"{ASIDE}*")
                      if path.name[len(ASIDE) :].isdigit()), default=0)  # fmt: skip
    aside = folder / f"{ASIDE}{number}"
    aside.mkdir()
    for path in sorted(found, key=lambda path: path.name == environment.FILE):  # by which a first try is known
        path.rename(aside / path.name)
    return f"begins anew: {folder} held no checkpoint; moved to {aside.name}: {', '.join(path.name for path in found)}"


def room(objective: nn.Module, recipe: Recipe) -> dict[str, int]:
    """What the checkpoints of a run need, in bytes: one of them, those that are there at once at most (and how many),
    what of these is there already, and what is free beside."""
    each, settings, there = checkpoint_bytes(objective, recipe), recipe.checkpoint, checkpoints(recipe.folder)
    written = recipe.steps // settings.every + (recipe.steps % settings.every > 0)
    extra = recipe.steps // settings.keep_every if settings.keep_every else 0
    kept = min(settings.keep + 1, written) + min(extra, max(written - settings.keep, 0))  # one is being written
    if there and int(there[-1].name.removeprefix("step-")) >= recipe.steps:
        kept = 0  # all are written
    return {
        "checkpoint": each, "kept at most": kept, "needed": each * kept,
        "held": sum(map(bytes_of, there)), "free": shutil.disk_usage(existing(recipe.folder)).free,
    }  # fmt: skip


def lack_of_room(recipe: Recipe, disk: dict[str, int]) -> str:
    """What is missing for the checkpoints, with the smallest change that passes; empty where they fit."""
    each, kept, free = disk["checkpoint"], disk["kept at most"], disk["free"] + disk["held"]
    if disk["needed"] <= free:
        return ""
    fits = free // each - 1
    change = f"checkpoint.keep={fits}" if fits >= 1 else f"out=FOLDER on a disk with {each * 2 / GIB:.1f} GiB free"
    held = f" and {disk['held'] / GIB:.2f} in those of this run" if disk["held"] else ""
    return (
        f"checkpoint.keep: {kept} checkpoints of {each / GIB:.2f} GiB need {disk['needed'] / GIB:.2f} GiB, "
        f"{existing(recipe.folder)} has {disk['free'] / GIB:.2f} free{held}; smallest change: {change}"
    )


def check_room(recipe: Recipe, disk: dict[str, int]) -> None:
    """Refuse a run whose checkpoints will not fit, unless it is to wait for room (`checkpoint.on_full`)."""
    if recipe.checkpoint.on_full == "stop" and (lack := lack_of_room(recipe, disk)):
        raise ConfigError(lack)
