"""Networks out of a folder as timm writes it (`save_for_hf`): config.json with an `architecture`, and its weights.

The sizes of a network are read off its weights, so that it is the same whatever its architecture is called. What timm
has and transformers has not (a deep stem, squeeze and excitation, register tokens) leaves weights without a place: such
a folder is refused, but for its classifier.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from bigssl.config.errors import ConfigError
from bigssl.nets.pretrained import keep_found
from bigssl.nets.timm.names import EPS, EPSILON, JOINED, timm_name

FILE, CONFIG = "model.safetensors", "config.json"
CLASSIFIERS = ("fc.", "head.fc.", "head.weight", "head.bias", "head_dist.")
WIDE = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # heads of timm's vision transformers by their width
State = Mapping[str, Tensor]


def is_of_timm(folder: str | Path) -> bool:
    """Whether `folder` has a config.json as timm writes it."""
    return "architecture" in _settings(Path(folder))


def timm_config(folder: str, kind: str) -> PreTrainedConfig:
    """The configuration of the network in `folder`, as one of transformers' type `kind`.

    Raises:
        ConfigError: it is no network of this type.
    """
    describe = KINDS.get(kind)
    if describe is None:
        raise ConfigError(f"no network of type {kind!r} is read out of a folder of timm; allowed: "
                          f"{', '.join(sorted(KINDS))}, or a folder of transformers")  # fmt: skip
    settings, state = _settings(Path(folder)), _weights(folder)
    try:
        fields = describe(state, settings)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"timm's {settings['architecture']} is no {kind} ({error})") from None
    return CONFIG_MAPPING[kind](**fields)


def read_timm(folder: str, config: PreTrainedConfig, *, partial: bool = False, **options: Any) -> PreTrainedModel:
    """The bare network in `folder`, in float32; tensors that it lacks are made anew where `partial` is allowed.

    Raises:
        ConfigError: as `read_network`; or it holds weights that have no place in transformers' network.
    """
    model: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float32, **options)
    state, mine = _weights(folder), model.state_dict()
    taken = {name: timm_name(config.model_type, name) for name in mine}
    left = sorted(set(state) - set(taken.values()))
    if strange := [name for name in left if not name.startswith(CLASSIFIERS)]:
        raise ConfigError(f"timm's {_settings(Path(folder))['architecture']} has {len(strange)} tensors for which "
                          f"{type(model).__name__} has no place ({', '.join(strange[:3])}); allowed: an architecture "
                          f"without them, or a folder of transformers")  # fmt: skip
    found = {name: _part(name, state[there]) for name, there in taken.items() if there in state}
    found = {name: value.reshape(mine[name].shape) if value.numel() == mine[name].numel() else value
             for name, value in found.items()}  # fmt: skip
    other = {name: f"{list(value.shape)} in place of {list(mine[name].shape)}" for name, value in found.items()
             if value.shape != mine[name].shape}  # fmt: skip
    model.load_state_dict({name: value for name, value in found.items() if name not in other}, strict=False)
    return keep_found(model, mine.keys() - found.keys(), left, other, partial)


def _part(name: str, value: Tensor) -> Tensor:
    """float32; of what timm has in one, the third that is queries, keys or values."""
    value = value.float() if value.is_floating_point() else value
    for number, letter in enumerate("qkv"):
        if f"attention.{letter}_proj" in name:
            return value.chunk(3)[number].clone()
    return value


def _resnet(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    stages = range(1, 1 + _count(state, "layer{}."))
    bottleneck = "layer1.0.conv3.weight" in state
    last = "conv3" if bottleneck else "conv2"
    return {
        "num_channels": state["conv1.weight"].shape[1],
        "embedding_size": len(state["conv1.weight"]), "layer_type": "bottleneck" if bottleneck else "basic",
        "depths": [_count(state, f"layer{stage}.{{}}.", 0) for stage in stages],
        "hidden_sizes": [len(state[f"layer{stage}.0.{last}.weight"]) for stage in stages],
    }  # fmt: skip


def _convnext(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    stages = range(_count(state, "stages.{}.", 0))
    return {
        "num_channels": state["stem.0.weight"].shape[1],
        "patch_size": state["stem.0.weight"].shape[-1], "num_stages": len(stages),
        "depths": [_count(state, f"stages.{stage}.blocks.{{}}.", 0) for stage in stages],
        "hidden_sizes": [len(state[f"stages.{stage}.blocks.0.conv_dw.weight"]) for stage in stages],
    }  # fmt: skip


def _transformer(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    width, patch = len(state["patch_embed.proj.weight"]), state["patch_embed.proj.weight"].shape[-1]
    prefix = sum(name in state for name in ("cls_token", "dist_token"))
    places = state["pos_embed"].shape[1] - prefix
    side = round(places**0.5)
    if side * side != places:
        raise ValueError(f"{places} positions of no square")
    heads = settings.get("model_args", {}).get("num_heads") or WIDE.get(width)
    if heads is None:
        raise ValueError(f"no number of heads is known of a width of {width}: model_args.num_heads in {CONFIG}")
    return {
        "num_channels": state["patch_embed.proj.weight"].shape[1],
        "hidden_size": width, "patch_size": patch, "image_size": side * patch, "num_attention_heads": heads,
        "num_hidden_layers": _count(state, "blocks.{}.", 0), "layer_norm_eps": settings.get(EPSILON, EPS),
        "intermediate_size": len(state["blocks.0.mlp.fc1.weight"]), "qkv_bias": f"blocks.0.{JOINED}.bias" in state,
    }  # fmt: skip


KINDS: dict[str, Callable[[State, Mapping[str, Any]], dict[str, Any]]] = {
    "resnet": _resnet, "convnext": _convnext, "convnextv2": _convnext, "vit": _transformer, "deit": _transformer,
}  # fmt: skip


def _count(state: State, pattern: str, first: int = 1) -> int:
    """How many of `pattern` there are, from `first` on without a gap."""
    number = first
    while any(name.startswith(pattern.format(number)) for name in state):
        number += 1
    return number - first


def _settings(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _weights(folder: str) -> dict[str, Tensor]:
    path = Path(folder) / FILE
    if not path.is_file():
        raise ConfigError(f"no {FILE} in it; allowed: a folder as timm.models.save_for_hf(model, FOLDER, "
                          "safe_serialization=True) writes it")  # fmt: skip
    return load_file(path)
