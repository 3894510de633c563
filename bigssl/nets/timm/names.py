"""Names of weights in timm, of the networks of transformers that timm has as well."""

from __future__ import annotations

import re

_STEM = (("embedder.embedder.convolution", "conv1"), ("embedder.embedder.normalization", "bn1"))
_CONVNEXT = (
    ("embeddings.patch_embeddings", "stem.0"), ("embeddings.layernorm", "stem.1"), ("encoder.stages", "stages"),
    (".layers.", ".blocks."), ("downsampling_layer", "downsample"), ("dwconv", "conv_dw"),
    ("layer_scale_parameter", "gamma"), ("pwconv1", "mlp.fc1"), ("pwconv2", "mlp.fc2"), (".grn.", ".mlp.grn."),
)  # fmt: skip
_TRANSFORMER = (
    ("embeddings.cls_token", "cls_token"), ("embeddings.distillation_token", "dist_token"),
    ("embeddings.register_tokens", "reg_token"), ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("encoder.layer.", "blocks."),
    ("layers.", "blocks."), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("layernorm.", "norm."),
    ("attention.o_proj", "attn.proj"), ("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma"),
)  # fmt: skip
EPS, EPSILON = 1e-6, "layer_norm_eps"  # of LayerNorms; where config.json of ours says another, which timm does not read
JOINED = "attn.qkv"  # queries, keys and values of a block, one below the other


def timm_name(kind: str, name: str) -> str:
    """timm's name of a weight `name` of a network of transformers' type `kind`. Of queries, keys and values it is the
    name of the one that holds all three (`JOINED`)."""
    if kind == "resnet":
        return _of_resnet(name)
    if kind.startswith("convnext"):
        return _of_convnext(name)
    for ours, theirs in _TRANSFORMER:
        name = name.replace(ours, theirs)
    return re.sub(r"attention\.[qkv]_proj", JOINED, name)


def _of_resnet(name: str) -> str:
    def block(found: re.Match[str]) -> str:
        stage, layer, inside, place, what = found.groups()
        convolution = what == "convolution"
        end = f"downsample.{0 if convolution else 1}" if inside == "shortcut" else (
            f"{'conv' if convolution else 'bn'}{int(place) + 1}")  # fmt: skip
        return f"layer{int(stage) + 1}.{layer}.{end}"

    for ours, theirs in _STEM:
        name = name.replace(ours, theirs)
    return re.sub(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(shortcut|layer)(?:\.(\d+))?\.(convolution|normalization)",
                  block, name)  # fmt: skip


def _of_convnext(name: str) -> str:
    for ours, theirs in _CONVNEXT:
        name = name.replace(ours, theirs)
    name = "head.norm" + name.removeprefix("layernorm") if name.startswith("layernorm") else name
    return re.sub(r"blocks\.(\d+)\.layernorm", r"blocks.\1.norm", name)
