"""As timm loads it: its name for the architecture with the sizes of ours, and the weights under its names.

    DIR/config.json, DIR/model.safetensors     `timm.create_model("local-dir:DIR", pretrained=True)`

What the features are there: the mean of `forward_features` over positions, of tokens without the prefix tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bigssl.nets.modality.pixels import COLOURS
from bigssl.nets.pool import IMAGE_MEAN, IMAGE_STD
from bigssl.nets.timm.names import EPS, EPSILON, timm_name
from bigssl.transfer.inputs import ImageInput
from bigssl.transfer.leaving.parts import LeavingPart, PartNetwork, UnfitError
from bigssl.transfer.leaving.proof import Claim, digests
from bigssl.transfer.leaving.samples import Samples, contents, write_json

State = dict[str, Tensor]
Architecture = tuple[str, dict[str, Any]]
STEM = 64  # channels behind the first convolution of timm's residual networks, whatever their other widths


def to_timm(part: LeavingPart, folder: Path, samples: Samples) -> list[Claim]:
    """Writes config.json and weights to `folder`. Raises UnfitError."""
    member = part.members.get("image")
    if member is None or part.kind != "network" or not isinstance(member.takes, ImageInput):
        raise UnfitError(f"part {part.name!r}: timm takes networks of pictures; allowed: --format onnx or "
                         "transformers")  # fmt: skip
    size, channels, config = member.takes.size, member.takes.channels, member.model.config
    convert = CONVERTERS.get(config.model_type)
    if convert is None:
        raise UnfitError(f"part {part.name!r}: no timm name is known for a {config.model_type}; allowed: "
                         f"{', '.join(sorted(CONVERTERS))}")
    (name, arguments), state = convert(_Fit(part.name, member), dict(member.model.state_dict()))
    weights = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    eps = None if name.startswith(("resnet", "convnext")) or config.layer_norm_eps == EPS else config.layer_norm_eps
    ours = ({} if eps is None else {EPSILON: eps}) | (
        {} if member.takes.window is None else {"window": list(member.takes.window)})  # fmt: skip
    arguments |= {} if channels == COLOURS else {"in_chans": channels}
    write_json(folder / "config.json", ours | {
        "architecture": name, "num_classes": 0, "num_features": int(member.features(samples["image"][:1]).shape[1]),
        "model_args": arguments, "pretrained_cfg": {
            "input_size": [channels, size, size], "fixed_input_size": "img_size" in arguments, "num_classes": 0,
            "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center",
            "mean": [IMAGE_MEAN] * channels, "std": [IMAGE_STD] * channels,
        },
    })  # fmt: skip
    said = "" if eps is None else f", norm_layer=partial(torch.nn.LayerNorm, eps={eps})"
    return [Claim(part.name, folder, "timm", f'timm.create_model("local-dir:{{folder}}", pretrained=True{said})',
                  {"eps": eps}, contents(member.takes, samples["image"]),
                  {"features": member.features(samples["image"]).numpy()}, digests(weights),
                  before=member.takes.before)]  # fmt: skip


class _Fit:
    """Says of a configuration whether a converter can take it."""

    def __init__(self, part: str, member: PartNetwork) -> None:
        self.part, self.config = part, member.model.config
        self.takes = member.takes
        assert isinstance(member.takes, ImageInput)
        self.size = member.takes.size

    def wants(self, holds: bool, what: str) -> None:
        if not holds:
            raise UnfitError(f"part {self.part!r}: timm's {self.config.model_type} has {what}; allowed: --format onnx "
                             "or transformers")  # fmt: skip


def _resnet(fit: _Fit, state: State) -> tuple[Architecture, State]:
    """A narrower stem is filled up by channels that are always 0, so that where ours has none, timm has a shortcut
    convolution: the identity."""
    c, basic = fit.config, fit.config.layer_type == "basic"
    widths = [width if basic else width // 4 for width in c.hidden_sizes]
    fit.wants(len(widths) == 4, f"4 stages, not {len(widths)}")
    fit.wants(c.hidden_act == "relu", f"relu, not {c.hidden_act}")
    fit.wants(not c.downsample_in_bottleneck and not c.downsample_in_first_stage, "strides at other places")
    fit.wants(c.embedding_size <= STEM, f"a stem of {STEM} channels, not {c.embedding_size}")
    first = c.hidden_sizes[0]
    fit.wants(c.embedding_size == first or first != STEM, f"no shortcut convolution from {c.embedding_size} to {first}")
    renamed = {timm_name("resnet", name): value for name, value in state.items()}
    if c.embedding_size < STEM:
        _widen_stem(renamed, c.embedding_size, first)
    name = "resnet18" if basic else "resnet50"
    return (name, {"layers": list(c.depths), "channels": widths, "zero_init_last": False}), renamed


def _widen_stem(state: State, width: int, first: int) -> None:
    beyond = STEM - width
    fill = {"conv1.weight": 0.0, "bn1.weight": 1.0, "bn1.bias": 0.0, "bn1.running_mean": 0.0, "bn1.running_var": 1.0}
    for name, value in fill.items():
        state[name] = torch.cat([state[name], state[name].new_full((beyond, *state[name].shape[1:]), value)])
    if "layer1.0.downsample.0.weight" not in state and first != STEM:
        state["layer1.0.downsample.0.weight"] = torch.eye(first)[:, :, None, None]
        one = torch.ones(first)
        state |= {f"layer1.0.downsample.1.{name}": value for name, value in (
            ("weight", (one + 1e-5).sqrt()), ("bias", one * 0), ("running_mean", one * 0), ("running_var", one),
            ("num_batches_tracked", torch.tensor(0)))}  # fmt: skip
    for name in ("layer1.0.conv1.weight", "layer1.0.downsample.0.weight"):
        if name in state and state[name].shape[1] == width:
            kernel = state[name]
            state[name] = torch.cat([kernel, kernel.new_zeros(len(kernel), beyond, *kernel.shape[2:])], 1)


def _convnext(fit: _Fit, state: State) -> tuple[Architecture, State]:
    c = fit.config
    fit.wants(len(c.hidden_sizes) == 4, f"4 stages, not {len(c.hidden_sizes)}")
    fit.wants(c.hidden_act == "gelu", f"gelu, not {c.hidden_act}")
    names = {name: timm_name(c.model_type, name) for name in state}
    renamed = {names[name]: value.flatten() if ".grn." in name else value for name, value in state.items()}
    arguments = {"depths": list(c.depths), "dims": list(c.hidden_sizes), "patch_size": c.patch_size}
    return (f"{c.model_type}_tiny", arguments), renamed


def _vit(fit: _Fit, state: State) -> tuple[Architecture, State]:
    renamed = _renamed(state)
    return ("vit_base_patch16_224", _transformer(fit, renamed) | {"global_pool": "avg", "fc_norm": False}), renamed


def _deit(fit: _Fit, state: State) -> tuple[Architecture, State]:
    renamed = _renamed(state)
    return ("deit_base_distilled_patch16_224", _transformer(fit, renamed)), renamed


def _dinov2(fit: _Fit, state: State) -> tuple[Architecture, State]:
    """With registers, timm's class token has no position of its own: it is added to the token."""
    c, renamed = fit.config, _renamed(state)
    fit.wants(not c.use_swiglu_ffn, "an MLP of another kind")
    arguments = _transformer(fit, renamed) | {"init_values": 1e-5, "global_pool": "avg", "fc_norm": False}
    if "reg_token" not in renamed:
        return ("vit_base_patch14_dinov2", arguments), renamed
    places = renamed["pos_embed"]
    renamed |= {"cls_token": renamed["cls_token"] + places[:, :1], "pos_embed": places[:, 1:]}
    return ("vit_base_patch14_reg4_dinov2", arguments | {"reg_tokens": c.num_register_tokens}), renamed


def _transformer(fit: _Fit, renamed: State) -> dict[str, Any]:
    """The width of an MLP is that of its weights: types differ in which field says it, and ignore the other."""
    c = fit.config
    fit.wants(c.hidden_act == "gelu", f"gelu, not {c.hidden_act}")
    fit.wants(c.image_size == fit.size, f"positions for pictures of {c.image_size}, not {fit.size}")
    ratio = len(renamed["blocks.0.mlp.fc1.weight"]) / c.hidden_size
    return {"img_size": fit.size, "patch_size": c.patch_size, "embed_dim": c.hidden_size, "qkv_bias": c.qkv_bias,
            "depth": c.num_hidden_layers, "num_heads": c.num_attention_heads, "mlp_ratio": ratio}


def _renamed(state: State) -> State:
    """Of a vision transformer: queries, keys and values in one; without a mask token."""
    found: dict[str, list[Tensor]] = {}
    for letter in ("", "q", "k", "v"):
        for name, value in state.items():
            if letter == next((each for each in "qkv" if f"attention.{each}_proj" in name), "") and (
                not name.endswith("mask_token")
            ):
                found.setdefault(timm_name("vit", name), []).append(value)
    return {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in found.items()}


CONVERTERS: dict[str, Callable[[_Fit, State], tuple[Architecture, State]]] = {
    "resnet": _resnet, "convnext": _convnext, "convnextv2": _convnext, "vit": _vit, "deit": _deit,
    "dinov2": _dinov2, "dinov2_with_registers": _dinov2,
}  # fmt: skip
