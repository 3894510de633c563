"""A small network of each modality, to begin with: one that learns something from a few hundred samples, in minutes, on
two CPU cores. Left to its type's own configuration, each is the usual size (ResNet-50, ViT-B/16, a base model)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import CONFIG_MAPPING

Sizes = Mapping[str, Any]
_TRANSFORMER = {"num_attention_heads": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _resnet(sizes: Sizes) -> dict[str, Any]:
    return {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1], "layer_type": "basic"}


def _vit(sizes: Sizes) -> dict[str, Any]:
    """8 × 8 patches, whatever the size."""
    width = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 512}
    return {"patch_size": sizes["size"] // 8, **width, **_TRANSFORMER}


def _roformer(sizes: Sizes) -> dict[str, Any]:
    """Rotary positions: with learned ones a small run stays near token frequencies. The usual range of initial weights,
    .02, is made for a width of 768."""
    width = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 512, "initializer_range": 0.06}
    return {**width, "max_position_embeddings": max(512, sizes["length"]), **_TRANSFORMER}


def _gpt2(sizes: Sizes) -> dict[str, Any]:
    width = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": max(512, sizes["length"])}
    return {**width, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def _bart(sizes: Sizes) -> dict[str, Any]:
    width = {"d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return {**width, **heads, "max_position_embeddings": max(512, sizes["length"]), "init_std": 0.06, "dropout": 0.0}


def _patchtst(sizes: Sizes) -> dict[str, Any]:
    patch = max(1, sizes["length"] // 12)
    width = {"d_model": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128}
    return {"patch_length": patch, "patch_stride": patch, **width}


def _wav2vec2(sizes: Sizes) -> dict[str, Any]:
    width = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    return {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, **width}


SMALL: dict[str, dict[str, Callable[[Sizes], dict[str, Any]]]] = {
    "image": {"resnet": _resnet, "vit": _vit},
    "text": {"roformer": _roformer, "gpt2": _gpt2, "bart": _bart},
    "series": {"patchtst": _patchtst},
    "audio": {"wav2vec2": _wav2vec2},
}
"""By modality and type, the fields of its transformers configuration for a backbone of these sizes (the recipe's fields
of the modality). The first is what is taken where a task leaves it open."""


def small_network(modality: str, kinds: tuple[str, ...], sizes: Sizes) -> tuple[str, dict[str, Any]]:
    """(type, fields of its configuration). kinds: types that serve; empty: all of the modality. Of a type that is not
    in SMALL, those fields that it has in common with one that is."""
    known = SMALL[modality]
    for kind in kinds or known:
        if kind in known:
            return kind, known[kind](sizes)
    own = CONFIG_MAPPING[kinds[0]]().to_dict()
    return kinds[0], {name: value for like in known.values() for name, value in like(sizes).items() if name in own}
