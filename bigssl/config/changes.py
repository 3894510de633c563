"""`--change FIELD,...`: which fields of a recipe a run may be given other values of on purpose, and which never."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from bigssl.config.errors import ConfigError, nearest

# A pattern is of dotted paths (`*`: any name) and stands for all fields below it, too.
ON_PURPOSE = (
    "name", "steps", "precision",
    "backbones.*.attention", "backbones.*.activation_checkpointing", "backbones.*.compile",
    "data.sources.*.min_shards", "data.sources.*.rates",
    *(f"optim.{field}" for field in ("lr", "betas", "eps", "momentum", "trust", "adam_lr", "weight_decay", "no_decay",
                                     "layer_decay", "clip", "groups", "warmup", "schedule", "decay", "power", "final")),
    "zero.options",
)  # fmt: skip
"""Beside these, what a task calls `adjustable`."""
NEVER = {  # the first pattern that fits says why; all else is refused as well
    "seed": "the order of the data follows from it: of the epoch that was begun, samples would come twice and others "
            "never",
    "batch.accum": "contrastive losses and BatchNorm see one pass at a time",
    "batch": "places in the data are counted in steps of this size: samples would come twice and others never",
    "data.sources.*.batch": "places in the data are counted in steps of this size: samples would come twice and others "
                            "never",
    "data": "the order of samples follows from it",
    "backbones": "the weights are those of this network",
    "objective*.temperature": "it is where a learned one began; the checkpoint knows what it has become",
    "objective": "it names what is trained, or shapes it",
    "optim.name": "the optimizer's state is of this kind",
}  # fmt: skip
OTHERWISE = "it is part of what the run is"


def covers(field: str, key: str) -> bool:
    """Whether the dotted `field` is `key`, or a section that holds it."""
    return key == field or key.startswith(f"{field}.")


def under(pattern: str, key: str) -> bool:
    """Whether a dotted path is what a pattern stands for."""
    return fnmatchcase(key, pattern) or fnmatchcase(key, f"{pattern}.*")


def never(key: str, adjustable: Collection[str], optimizer: str) -> str:
    """Why a run can never be given another value of the field `key`; empty where it can be, on purpose.

    Args:
        adjustable: patterns of the tasks' own fields that may change.
        optimizer: optim.name.
    """
    if key == "optim.no_decay" and optimizer == "muon":
        return "it also says which matrices muon orthogonalises, and their state is of another kind"
    if any(under(pattern, key) for pattern in (*ON_PURPOSE, *adjustable)):
        return ""
    return next((reason for pattern, reason in NEVER.items() if under(pattern, key)), OTHERWISE)


def refuse_idle_change(
    change: Sequence[str], known: Collection[str], differing: Collection[str], made: Collection[str], folder: str
) -> None:
    """Refuse names of `--change` that stand for nothing.

    Args:
        known: every dotted path of the recipe, and of the run's.
        differing: those of which the recipe has another value than the run.
        made: those that were changed in this run before, and still have that value, and those that may change unasked,
            which nobody writes down: the same command may come again.
    Raises:
        ConfigError: naming the first such field.
    """
    sections = {".".join(parts[:n]) for parts in (key.split(".") for key in known) for n in range(1, len(parts))}
    for field in change:
        if field not in sections | set(known):
            hint = nearest(field, sorted(sections | set(known)))
            raise ConfigError(f"--change: no field {field!r} in the recipe; allowed: names of its fields{hint}")
        if not any(covers(field, key) for key in (*differing, *made)):
            others = f"; what differs: {', '.join(sorted(differing))}" if differing else ""
            raise ConfigError(
                f"--change: {field} is what it was in the run in {folder}{others}; allowed: fields that differ "
                f"(new values are given as FIELD=VALUE)"
            )
