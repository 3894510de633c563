"""Going on in a run folder: which fields of a recipe may differ from what the folder was begun with, and why."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from bigssl.config.errors import ConfigError, describe
from bigssl.config.recipe import Attention, BatchConfig, Recipe
from bigssl.config.yaml import read_mapping
from bigssl.data.errors import redact
from bigssl.data.order.order import Order
from bigssl.nets.modality import MODALITIES
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective

CONFIG = "config.yaml"
# Fields that may differ (`*`: any name; all fields below one that is listed, too), with what makes that harmless.
# Every other field shapes the loss curve.
MAY_CHANGE = {
    "out": "the folder may be moved",
    "log_every": "logging", "data.ledger": "logging",
    "checkpoint": "what is kept on disk",
    "probe": "evaluation", "evaluate": "evaluation",
    "data.sources.*.url": "the manifest of each checkpoint knows the data's fingerprint",
    "backbones.*.tokenizer": "the manifest of each checkpoint knows its fingerprint",
    "backbones.*.pretrained": "the checkpoint's weights replace it, and its manifest knows the network",
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
REASONS = {
    "accum": "contrastive losses and BatchNorm see one pass at a time",
    "data": "the order of samples follows from the shards",
    "tokenizers": "the weights of a text backbone go with its tokens",
    "networks": "weights of equal shapes mean something else in another network",
    "groups": "each parameter goes on with the settings of its group; those of the recipe are compared with it",
}
# Fields of transformers configurations that shape no backbone (as those that begin with `_`): where it was found, by
# what and how it was stored, and what a classifier on it would say.
NOT_OF_THE_NETWORK = {"transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id",
                      "problem_type", "finetuning_task"}  # fmt: skip


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a run, whole or not, by step. Where there is none, no run has begun: what a
    first try has left binds nobody."""
    place = folder / "checkpoints"
    found = place.iterdir() if os.path.isdir(place) else []
    return sorted(path for path in found if re.fullmatch(r"step-\d{8,}", path.name))


def facts(
    accum: int, world: int, streams: Mapping[str, Order], backbones: Mapping[str, Tower], objective: Objective
) -> dict[str, Any]:
    """What the manifest of a checkpoint records of its run; a resume must match the fields of REASONS."""
    return {
        "world": world,
        "accum": accum,
        "data": {name: stream.fingerprint for name, stream in streams.items()},
        "tokenizers": {name: _fingerprint(tower) for name, tower in backbones.items()
                       if "tokenizer" in MODALITIES[tower.modality].fields},
        "networks": {name: _network(tower) for name, tower in backbones.items()},
        "groups": [json.loads(group.model_dump_json()) for group in objective.groups()],
    }


def unlike(manifest: dict[str, Any], mine: dict[str, Any]) -> str:
    """Why a run with the facts `mine` cannot go on from a checkpoint with this manifest; empty if it can."""
    for field, reason in REASONS.items():
        before, now = manifest.get(field, mine.get(field)), mine.get(field)
        if field == "networks":
            field, before, now = _first_difference(before or {}, now or {})
        if before != now:
            return f"has {field} {before}, this run {now}; allowed: the same ({reason}), or a new `out` folder"
    return ""


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any]:
    """The first field that differs, with both values. What only one of two versions of transformers knows is none."""
    for name in sorted(before.keys() & now.keys()):
        for key in sorted(before[name].keys() & now[name].keys()):
            if before[name][key] != now[name][key]:
                return f"networks.{name}.{key}", before[name][key], now[name][key]
    return "networks", None, None


def refuse_unlike_checkpoint(recipe: Recipe, mine: dict[str, Any]) -> None:
    """Refuse to start where the newest checkpoint of the run folder is of other data or passes. Raises ConfigError."""
    manifests = sorted(recipe.folder.glob("checkpoints/step-*[0-9]/manifest.json"))
    try:
        problem = unlike(json.loads(manifests[-1].read_text()), mine) if manifests else ""
    except (OSError, ValueError):
        return  # a damaged one: resuming names it and takes the one before
    if problem:
        raise ConfigError(f"out: {recipe.folder}: {manifests[-1].parent.name} {problem}")


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
        "batch": BatchConfig(size=size, accum=accum), "backbones": backbones,
        "data": recipe.data.model_copy(update={"sources": sources}),
    })  # fmt: skip


def refuse_changed_recipe(recipe: Recipe) -> None:
    """The same folder means resume: refuse a recipe whose maths differs, naming the fields. Raises ConfigError."""
    stored, unknown = _read(recipe)
    if stored is None:
        return
    before, now = flat(json.loads(stored.model_dump_json())), flat(json.loads(recipe.model_dump_json()))
    changes = {
        key: f"{before.get(key)!r} before, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _automatic(key, before.get(key), now.get(key))
    }
    # a field that an update removed and that was in use; fields that it brought have their defaults on both sides
    changes |= {key: f"{value!r} before, unknown to this version" for key, value in unknown.items() if value}
    fixed = {key: change for key, change in changes.items() if not may_change(key, recipe)}
    if fixed:
        text = redact("; ".join(f"{key}: {change}" for key, change in fixed.items()))
        raise ConfigError(
            f"out: {recipe.folder} holds a run with another recipe ({text}); allowed: the same values, or another "
            f"folder, for example out={recipe.folder}-2"
        )


def refuse_changed_length(recipe: Recipe, objective: Objective) -> None:
    """A run may be made longer (`may_change`), but not where a task follows how far the run is."""
    stored, _ = _read(recipe)
    scheduled = [type(part).__name__.lower() for part in objective.modules() if getattr(part, "scheduled", False)]
    if stored is not None and stored.steps != recipe.steps and scheduled:
        raise ConfigError(
            f"steps: value {recipe.steps}, but {recipe.folder} holds a run of {stored.steps}, along which "
            f"{scheduled[0]} changes its loss or the momentum of a teacher; allowed: steps={stored.steps}, or "
            f"another folder, for example out={recipe.folder}-2"
        )


def may_change(key: str, recipe: Recipe) -> bool:
    """Whether a resume may bring another value of a field, by its dotted path."""
    if any(fnmatchcase(key, pattern) for pattern in SHAPES_THE_CURVE):
        return False
    if any(key == f"data.sources.{name}.url" for name, source in recipe.data.sources.items() if source.sequential):
        return False  # nothing is known of what such shards hold
    if key == "steps":
        return recipe.optim.schedule == "constant"
    return any(fnmatchcase(key, pattern) or fnmatchcase(key, f"{pattern}.*") for pattern in MAY_CHANGE)


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


def _network(tower: Tower) -> dict[str, Any]:
    """What a checkpoint knows of a network beside its weights: activations, epsilons, rates of dropout, heads."""
    found: dict[str, Any] = _of_the_network(json.loads(tower.model.config.to_json_string(use_diff=False)))
    return found


def _of_the_network(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    kept = {key for key in values if key not in NOT_OF_THE_NETWORK and not key.startswith("_")}
    return {key: _of_the_network(values[key]) for key in kept}


def _fingerprint(tower: Tower) -> str:
    """SHA-256 hex of a tokenizer's content, wherever its file lies; what a call sets (truncation, padding) left out."""
    content = json.loads(tower.tokenizer.backend_tokenizer.to_str())
    kept = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
