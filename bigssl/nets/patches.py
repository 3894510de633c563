"""A vision transformer's class token and patches, some of which it does not see: a token that is learned stands in the
place of each hidden one, where its position is added (BEiT, SimMIM, iBOT)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.nets.modality import MODALITIES
from bigssl.nets.pool import leading_tokens
from bigssl.nets.towers import Tower

MASKABLE = ("vit", "vit_msn", "deit", "dinov2", "dinov2_with_registers")
"""Types whose class token comes first and whose embeddings make one vector of each patch before its position is
added."""

_PLACE = "embeddings.patch_embeddings"


def class_and_patches(
    tower: Tower, pictures: Tensor, hidden: Tensor | None = None, token: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Last hidden states of the class token [B, D] and of the patches [B, N, D].

    Args:
        pictures: uint8 [B, C, H, W].
        hidden: bool [B, N], where `token`, [D], stands in the place of a patch of a network that `can_mask`; default
            nowhere.
    """
    if hidden is not None and not _can_mask(tower.model):
        raise RuntimeError("class_and_patches: patches of a network to be hidden that was not made to by can_mask")
    inputs = MODALITIES[tower.modality].inputs(tower.model, {"image": pictures})
    with _replaced(hidden, token):
        states: Tensor = tower.model(**inputs).last_hidden_state
    return states[:, 0], states[:, leading_tokens(tower.model, pictures, states) :]


_hidden: tuple[Tensor, Tensor] | None = None


@contextmanager
def _replaced(hidden: Tensor | None, token: Tensor | None) -> Iterator[None]:
    """Within it, networks that `can_mask` embed patches as `token` where they are `hidden`."""
    global _hidden
    _hidden = None if hidden is None or token is None else (hidden, token)
    try:
        yield
    finally:
        _hidden = None


def _mask(embeddings: nn.Module, args: tuple[Any, ...], patches: Tensor) -> Tensor:
    """Hook of what embeds patches, [B, N, D]. It stays: a compiled network does not notice hooks that come and go, but
    what this one reads."""
    if _hidden is None:
        return patches
    where, token = _hidden
    return torch.where(where.unsqueeze(-1), token.to(patches.dtype), patches)


def can_mask(model: PreTrainedModel) -> None:
    """Makes a network of type MASKABLE one of which `class_and_patches` may hide patches; before it is first called,
    where it is compiled."""
    if not _can_mask(model):  # two objectives may share the backbone
        model.get_submodule(_PLACE).register_forward_hook(_mask)


def _can_mask(model: PreTrainedModel) -> bool:
    return _mask in model.get_submodule(_PLACE)._forward_hooks.values()


def patch_grid(tower: Tower) -> int:
    """Patches along a side of a picture of the network's size; 0 where they do not fill it."""
    patch = tower.model.config.patch_size
    return tower.size // patch if isinstance(patch, int) and tower.size % patch == 0 else 0
