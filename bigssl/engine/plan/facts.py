"""What the manifest of a checkpoint records of its run beside the recipe: data, tokenizers, networks by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe
from bigssl.data.order.order import Order
from bigssl.engine.plan.changes import checkpoints
from bigssl.nets.modality import MODALITIES
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective

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


def facts(
    accum: int, world: int, streams: Mapping[str, Order], backbones: Mapping[str, Tower], objective: Objective
) -> dict[str, Any]:
    """What the manifest of a checkpoint records of its run; a resume must match the fields of REASONS."""
    return {
        "world": world,
        "accum": accum,
        "data": {name: stream.fingerprint for name, stream in streams.items()},
        "tokenizers": {name: tokenizer_fingerprint(tower.tokenizer) for name, tower in backbones.items()
                       if "tokenizer" in MODALITIES[tower.modality].fields},
        "networks": {name: network_fields(tower.model.config) for name, tower in backbones.items()},
        "groups": [json.loads(group.model_dump_json()) for group in objective.groups()],
    }


def unlike(manifest: dict[str, Any], mine: dict[str, Any]) -> str:
    """Why a run with the facts `mine` cannot go on from a checkpoint with this manifest; empty if it can."""
    for field, reason in REASONS.items():
        before, now = manifest.get(field, mine.get(field)), mine.get(field)
        if field == "networks":
            field, before, now = first_difference(before or {}, now or {})
        if before != now:
            return f"has {field} {before}, this run {now}; allowed: the same ({reason}), or a new `out` folder"
    return ""


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any]:
    """The first field that differs, with both values. What only one of two versions of transformers knows is none."""
    for name in sorted(before.keys() & now.keys()):
        for key in sorted(before[name].keys() & now[name].keys()):
            if before[name][key] != now[name][key]:
                return f"networks.{name}.{key}", before[name][key], now[name][key]
    return "networks", None, None


def refuse_unlike_checkpoint(recipe: Recipe, mine: dict[str, Any]) -> None:
    """Refuse to start where the newest checkpoint of the run folder is of other data or passes. Raises ConfigError."""
    manifests = [path / "manifest.json" for path in checkpoints(recipe.folder) if (path / "manifest.json").exists()]
    try:
        problem = unlike(json.loads(manifests[-1].read_text()), mine) if manifests else ""
    except (OSError, ValueError):
        return  # a damaged one: resuming names it and takes the one before
    if problem:
        raise ConfigError(f"out: {recipe.folder}: {manifests[-1].parent.name} {problem}")


def network_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """What a checkpoint knows of a network beside its weights: activations, epsilons, rates of dropout, heads."""
    found: dict[str, Any] = _of_the_network(json.loads(config.to_json_string(use_diff=False)))
    return found


def _of_the_network(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    kept = {key for key in values if key not in NOT_OF_THE_NETWORK and not key.startswith("_")}
    return {key: _of_the_network(values[key]) for key in kept}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 hex of a tokenizer's content, wherever its file lies; what a call sets (truncation, padding) left out."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
