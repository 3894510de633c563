"""A vision transformer's class token and patches, some of which it does not see: a token that is learned stands in the
place of each hidden one, where its position is added (BEiT, SimMIM, iBOT)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bigssl.nets.modality import MODALITIES
from bigssl.nets.pool import leading_tokens
from bigssl.nets.towers import Tower

MASKABLE = ("vit", "vit_msn", "deit", "dinov2", "dinov2_with_registers")
"""Types whose class token comes first and whose embeddings make one vector of each patch before its position is
added."""


def class_and_patches(
    tower: Tower, pictures: Tensor, hidden: Tensor | None = None, token: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Last hidden states of the class token [B, D] and of the patches [B, N, D].

    Args:
        pictures: uint8 [B, C, H, W].
        hidden: bool [B, N], where `token`, [D], stands in the place of a patch; default nowhere.
    """
    inputs = MODALITIES[tower.modality].inputs(tower.model, {"image": pictures})
    with _replaced(tower, hidden, token):
        states: Tensor = tower.model(**inputs).last_hidden_state
    return states[:, 0], states[:, leading_tokens(tower.model, pictures, states) :]


@contextmanager
def _replaced(tower: Tower, hidden: Tensor | None, token: Tensor | None) -> Iterator[None]:
    """Within it, patches of `tower` are embedded as `token` where they are `hidden`."""

    def replace(module: nn.Module, args: tuple[Any, ...], patches: Tensor) -> Tensor:
        assert hidden is not None and token is not None
        return torch.where(hidden.unsqueeze(-1), token.to(patches.dtype), patches)

    if hidden is None:
        yield
        return
    handle = tower.model.get_submodule("embeddings.patch_embeddings").register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def patch_grid(tower: Tower) -> int:
    """Patches along a side of a picture of the network's size; 0 where they do not fill it."""
    patch = tower.model.config.patch_size
    return tower.size // patch if isinstance(patch, int) and tower.size % patch == 0 else 0
