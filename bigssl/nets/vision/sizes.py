"""Networks of pictures by the names that papers have for their sizes.

| name | paper | parameters |
|---|---|---|
| resnet-18, -34, -50, -101 | He et al. 2016, https://arxiv.org/abs/1512.03385 | 11.2, 21.3, 23.5, 42.5 M |
| resnet-18-cifar, ... | the same with the stem of SimCLR's appendix B.9, for 32 pixels | 11.2, 21.3, 23.5, 42.5 M |
| vit-tiny, -small, -base, -large | Touvron et al. 2021, https://arxiv.org/abs/2012.12877; Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929 | 5.5, 21.7, 85.8, 303.3 M at 224 pixels |
| convnext-tiny, -small, -base, -large | Liu et al. 2022, https://arxiv.org/abs/2201.03545 | 27.8, 49.5, 87.6, 196.2 M |

Parameters are those without a classifier and without transformers' pooler, which no feature passes through. Patches of
a ViT are 16 × 16; `config: {patch_size: 4}` makes others.
"""  # noqa: E501 - a table

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig

FREE = ("patch_size", "layer_norm_eps")  # what a name does not say


class Named(NamedTuple):
    """kind: transformers model type. fields: of its configuration, beside its defaults."""

    kind: str
    fields: dict[str, Any]


def _resnet(kind: str, layer: str, depths: list[int]) -> Named:
    widths = [64, 128, 256, 512] if layer == "basic" else [256, 512, 1024, 2048]
    return Named(kind, {"embedding_size": 64, "hidden_sizes": widths, "depths": depths, "layer_type": layer})


def _vit(width: int, layers: int, heads: int) -> Named:
    """Of 64 numbers a head, an MLP of 4 × the width, and LayerNorm's 1e-6 of the original code."""
    return Named("vit", {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
                         "intermediate_size": 4 * width, "patch_size": 16, "layer_norm_eps": 1e-6})


def _convnext(width: int, deep: int) -> Named:
    return Named("convnext", {"depths": [3, 3, deep, 3], "hidden_sizes": [width, 2 * width, 4 * width, 8 * width]})


_RESNETS = {
    "resnet-18": ("basic", [2, 2, 2, 2]), "resnet-34": ("basic", [3, 4, 6, 3]),
    "resnet-50": ("bottleneck", [3, 4, 6, 3]), "resnet-101": ("bottleneck", [3, 4, 23, 3]),
}  # fmt: skip
NAMED: dict[str, Named] = {
    **{name: _resnet("resnet", *size) for name, size in _RESNETS.items()},
    **{f"{name}-cifar": _resnet("resnet_cifar", *size) for name, size in _RESNETS.items()},
    "vit-tiny": _vit(192, 12, 3), "vit-small": _vit(384, 12, 6), "vit-base": _vit(768, 12, 12),
    "vit-large": _vit(1024, 24, 16),
    "convnext-tiny": _convnext(96, 9), "convnext-small": _convnext(96, 27), "convnext-base": _convnext(128, 27),
    "convnext-large": _convnext(192, 27),
}  # fmt: skip


def with_named_size(config: BackboneConfig) -> BackboneConfig:
    """`config` whose type is a transformers model type: of a name in NAMED its fields stand under `config.config`,
    where those that are given replace them. A network that is loaded (`init_from`) has fields of its own."""
    named = NAMED.get(config.type)
    if named is None:
        return config
    fields = config.config if config.init_from is not None else named.fields | config.config
    return config.model_copy(update={"type": named.kind, "config": fields})


def refuse_other_size(where: str, config: BackboneConfig, loaded: PreTrainedConfig) -> None:
    """Raises ConfigError where `config.type` is a name, and the network in `config.init_from` is of another size."""
    named = NAMED.get(config.type)
    if named is None or config.init_from is None:
        return
    asked = {name: value for name, value in (named.fields | config.config).items() if name not in FREE}
    other = {name: getattr(loaded, name) for name, value in asked.items() if getattr(loaded, name) != value}
    if other:
        said = ", ".join(f"{name} {value}" for name, value in other.items())
        raise ConfigError(f"{where}.type: value {config.type!r}; allowed: {named.kind}, or the name of the network in "
                          f"{config.init_from}, which has {said}")  # fmt: skip
