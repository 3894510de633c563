"""Going on in a run folder: which fields of a recipe may differ from what the folder was begun with, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, get_args

from pydantic import ValidationError

from bigssl import distributed
from bigssl.config.changes import covers, never, refuse_idle_change, under
from bigssl.config.errors import ConfigError, describe
from bigssl.config.places import CONFIG
from bigssl.config.recipe import Attention, BatchConfig, Recipe, dump_recipe
from bigssl.config.yaml import read_mapping
from bigssl.data.errors import redact
from bigssl.engine.guards import NotSaved, on_main
from bigssl.engine.held import hold
from bigssl.engine.plan.changes import (
    adjustable_fields,
    checkpoints,
    made_before,
    newest_step,
    refuse_change_of_nothing,
    refuse_other_beginning,
    ways_out,
)
from bigssl.engine.plan.folder import clear
from bigssl.files import write_atomic
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective
from bigssl.report import environment
from bigssl.report.changes import Change, read_changes, write_changes

# Fields that may differ (`*`: any name; all fields below one that is listed, too), with what makes that harmless.
# Every other field shapes the loss curve: config/changes.py says which of them may change on purpose.
MAY_CHANGE = {
    "out": "the folder may be moved",
    "log_every": "logging", "data.ledger": "logging",
    "checkpoint": "what is kept on disk",
    "probe": "evaluation", "evaluate": "evaluation",
    "data.sources.*.url": "the manifest of each checkpoint knows the data's fingerprint",
    "backbones.*.tokenizer": "the manifest of each checkpoint knows its fingerprint",
    "backbones.*.init_from": "the checkpoint's weights replace it, and its manifest knows the network",
    "backbones.*.allow_partial": "as init_from",
    "start_from": "as init_from; another one is refused all the same",
    "data.workers": "the order of samples does not depend on it", "data.remote": "how bytes are read",
    "data.on_error": "damage is met as the user now wishes", "data.max_errors": "as on_error",
    "data.limits": "as on_error", "data.watchdog": "waiting", "data.watchdog_abort": "waiting",
    "batch.micro": "with the same accum, each pass sees the same samples on all ranks together",
    "zero.stage": "a checkpoint can be read at any stage", "zero.options": "how the same sums are made",
}  # fmt: skip
SHAPES_THE_CURVE = ("zero.options.*quantized*",)  # exceptions from the above
# Values that stand for one that is found at the start.
AUTOMATIC = {
    "out": "", "precision": "auto", "batch.micro": None, "batch.accum": None, "data.sources.*.batch": None,
    "optim.adam_lr": None, "backbones.*.attention": None,
}  # fmt: skip


def taken_over(recipe: Recipe) -> Recipe:
    """`recipe` with what its run folder found automatically, so that another machine does not find something else."""
    before = _read(recipe)[0]
    if before is None:
        return recipe
    batch = recipe.batch
    if batch.accum is None and before.batch.accum is not None:
        batch = batch.model_copy(update={"accum": before.batch.accum})
    precision = before.precision if recipe.precision == "auto" else recipe.precision
    backbones = {
        name: config.model_copy(update={"attention": config.attention or before.backbones[name].attention})
        if name in before.backbones else config
        for name, config in recipe.backbones.items()
    }  # fmt: skip
    return recipe.model_copy(update={"precision": precision, "batch": batch, "backbones": backbones})


def settled(recipe: Recipe, towers: Mapping[str, Tower], *, accum: int, bf16: bool) -> Recipe:
    """`recipe` with every automatic value replaced by the one that was found. (micro is what accum and ranks leave.)"""
    backbones = {
        name: config.model_copy(update={"attention": config.attention or _attention(towers[name])})
        for name, config in recipe.backbones.items()
    }
    size, optim = recipe.batch.size, recipe.optim
    sources = {
        name: source.model_copy(update={"batch": source.batch or size}) for name, source in recipe.data.sources.items()
    }
    if optim.name == "muon":
        optim = optim.model_copy(update={"adam_lr": optim.adam_lr or optim.lr})
    return recipe.model_copy(update={
        "out": str(recipe.folder), "precision": "bf16" if bf16 else "fp32", "optim": optim,
        "batch": BatchConfig(size=size, accum=accum, cached=recipe.batch.cached), "backbones": backbones,
        "data": recipe.data.model_copy(update={"sources": sources}),
    })  # fmt: skip


def refuse_changed_recipe(recipe: Recipe, change: Sequence[str] = ()) -> None:
    """The same folder means resume: refuse a recipe whose maths differs from the run's, but for the fields `change`,
    which have to differ, and to be fields of which a run may have another value. Raises ConfigError."""
    stored, unknown = _read(recipe)
    refuse_change_of_nothing(recipe, change, begun=stored is not None)
    if stored is None:
        return
    before, now = _flat_recipe(stored), _flat_recipe(recipe)
    found = _differences(before, now)
    refuse_other_beginning(recipe, stored)
    known = before.keys() | now.keys()
    idle = [*made_before(recipe, now), *(key for key in known if may_change(key, recipe))]
    refuse_idle_change(change, known, found, idle, str(recipe.folder))
    shown = {key: f"{old!r} before, {new!r} now" for key, (old, new) in found.items() if not may_change(key, recipe)}
    reasons = {key: never(key, adjustable_fields(recipe), recipe.optim.name) for key in shown}
    # a field that an update removed and that was in use; fields that it brought have their defaults on both sides
    shown |= {key: f"{value!r} before, unknown to this version" for key, value in unknown.items() if value}
    reasons |= {key: "bigssl has no such field any more" for key, value in unknown.items() if value}
    wrong = {key: why for key, why in reasons.items() if why or not any(covers(field, key) for field in change)}
    if wrong:
        text = redact("; ".join(f"{key}: {shown[key]}" for key in wrong))
        allowed = ways_out(recipe, wrong)
        raise ConfigError(f"out: {recipe.folder} holds a run with another recipe ({text}); allowed: {allowed}")


def open_folder(resolved: Recipe) -> list[str]:
    """Make the run folder of a recipe whose automatic values are found (`settled`). Collective.

    Returns:
        on rank 0, what there is to say about it.
    Raises:
        NotSaved: the disk refuses, or does not show its files to every rank.
    """

    def write() -> list[str]:
        resolved.folder.mkdir(parents=True, exist_ok=True)
        notes = hold(resolved.folder)
        notes += [said] if (said := clear(resolved.folder)) else []
        environment.record(resolved.folder)  # first, since by it a first try is known
        if not checkpoints(resolved.folder) or not (resolved.folder / CONFIG).exists():
            _write(resolved)  # else it says what the steps so far were trained with
        return notes

    notes = on_main(resolved.folder, write)
    if not distributed.agree((resolved.folder / CONFIG).exists()):
        raise NotSaved(f"{resolved.folder} is not seen by every rank; out has to be on a shared file system")
    return notes if distributed.is_main() else []


def settle_folder(resolved: Recipe, start: int) -> list[str]:
    """Make config.yaml the recipe of what follows step `start`, once it is written down what changes there. Collective.

    Returns:
        on rank 0, sentences on what changes.
    Raises:
        NotSaved: the disk refuses.
    """

    def write() -> list[str]:
        made = _record_changes(resolved, start)
        _write(resolved)
        return [f"changed on purpose: {change.sentence}" for change in made]

    notes = on_main(resolved.folder, write)
    return notes if distributed.is_main() else []


def _record_changes(resolved: Recipe, start: int) -> list[Change]:
    """What changes after `start`, written down. A change that no saved step was trained with (it was made at `start` or
    later: nothing was saved, or what was is damaged) is as if it had not been made."""
    stored, record = _read(resolved)[0], read_changes(resolved.folder)
    before = _flat_recipe(stored or resolved)
    for change in reversed([change for change in record if change.step >= start]):
        before[change.field] = change.before
    found = _differences(before, _flat_recipe(resolved)) if start else {}
    kept = [key for key in found if key == "steps" or not may_change(key, resolved)]
    made = [Change(start, key, *found[key]) for key in kept]
    write_changes(resolved.folder, [*(change for change in record if change.step < start), *made])
    return made


def _write(resolved: Recipe) -> None:
    write_atomic(resolved.folder / CONFIG, dump_recipe(resolved).encode())


def _flat_recipe(recipe: Recipe) -> dict[str, Any]:
    return flat(json.loads(recipe.model_dump_json()))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields with two values, (before, now), by dotted path; one that stands for what is found is none of them."""
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _automatic(key, before.get(key), now.get(key))
    }


def refuse_changed_length(recipe: Recipe, objective: Objective, change: Sequence[str] = ()) -> None:
    """Refuse fewer steps than were made, and another number of them, if not by `change`, where a task follows how far
    the run is. Raises ConfigError."""
    stored, made = _read(recipe)[0], newest_step(recipe)
    if stored is None or stored.steps == recipe.steps:
        return
    if made is not None and recipe.steps < made:
        raise ConfigError(f"steps: value {recipe.steps}, but {recipe.folder} holds a run that has made {made}; "
                          f"allowed: >= {made}")  # fmt: skip
    task = _scheduled(objective)
    if task and not any(covers(field, "steps") for field in change):
        raise ConfigError(
            f"steps: value {recipe.steps}, but {recipe.folder} holds a run of {stored.steps}, along which "
            f"{task} changes its loss or the momentum of a teacher; allowed: steps={stored.steps}; or "
            f"`--change steps`; or another folder, for example out={recipe.folder}-2"
        )


def _scheduled(objective: Objective) -> str:
    names = [part.config.name for part in objective.modules() if isinstance(part, Objective) and part.scheduled]
    return names[0] if names else ""


def notes_of_length(recipe: Recipe, objective: Objective) -> list[str]:
    """What another number of steps means for a task that follows how far the run is; call it once it is allowed."""
    stored, made, task = _read(recipe)[0], newest_step(recipe), _scheduled(objective)
    if stored is None or made is None or stored.steps == recipe.steps or not task:
        return []
    return [
        f"steps: {task} changes its loss or the momentum of a teacher along the run; it goes on as after step {made} "
        f"of {recipe.steps}, where it was as after step {made} of {stored.steps}"
    ]


def may_change(key: str, recipe: Recipe) -> bool:
    """Whether a resume may bring another value of a field, by its dotted path, unasked."""
    if any(fnmatchcase(key, pattern) for pattern in SHAPES_THE_CURVE):
        return False
    if any(key == f"data.sources.{name}.url" for name, source in recipe.data.sources.items() if source.sequential):
        return False  # nothing is known of what such shards hold
    if key == "steps":
        return recipe.optim.schedule == "constant"
    return any(under(pattern, key) for pattern in MAY_CHANGE)


def _automatic(key: str, *values: Any) -> bool:
    return any(fnmatchcase(key, pattern) and value in values for pattern, value in AUTOMATIC.items())


def _read(recipe: Recipe) -> tuple[Recipe | None, dict[str, Any]]:
    """The recipe of the run folder, None if no run has begun there, and its fields that this version does not know."""
    path, model = recipe.folder / CONFIG, type(recipe)
    if not checkpoints(recipe.folder) or not path.exists():
        return None, {}
    # Evaluations may change, and their form has: one that this version cannot read is no reason to refuse.
    values = {name: value for name, value in read_mapping(path).items() if name not in ("probe", "evaluate")}
    unknown: dict[str, Any] = {}
    try:
        return model.model_validate(values), {}
    except ValidationError as error:
        for item in error.errors():
            if item["type"] == "extra_forbidden":
                unknown |= _remove(values, [str(part) for part in item["loc"]])
    try:
        return model.model_validate(values), unknown
    except ValidationError as error:
        text = "; ".join(describe(error, str(path), model.model_json_schema()))
        raise ConfigError(f"{text}; allowed: bigssl as it was when the run began, or another `out` folder") from None


def _remove(values: dict[str, Any], location: list[str]) -> dict[str, Any]:
    """Take a field out of `values`; {its dotted path: value}. `location`: pydantic's, with tags of unions in it."""
    here, path = values, []
    for part in location[:-1]:
        if isinstance(here.get(part), dict):
            here = here[part]
            path.append(part)
    return {".".join([*path, location[-1]]): here.pop(location[-1])}


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted path."""
    if not isinstance(values, dict):
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _attention(tower: Tower) -> str | None:
    """What transformers chose; None for what a recipe cannot ask for."""
    chosen = tower.model.config._attn_implementation
    return chosen if chosen in get_args(Attention) else None
