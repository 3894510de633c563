"""GELU's tanh form in one kernel: transformers writes it out, in eight passes over [B, T, 4 D] of which five are kept
for the backward pass. The same function (Hendrycks and Gimpel 2016, arXiv 1606.08415), to rounding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation

_WRITTEN_OUT = (AccurateGELUActivation, FastGELUActivation, NewGELUActivation)  # GPT-2, ALBERT, BigBird and others


class TanhGelu(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return F.gelu(values, approximate="tanh")


def fuse_activations(root: nn.Module) -> int:
    """Replaces them within a network, which has no weights there; how many there were."""
    found = [
        (module, name)
        for module in root.modules()
        for name, child in module.named_children()
        if type(child) in _WRITTEN_OUT
    ]
    for module, name in found:
        setattr(module, name, TanhGelu())
    return len(found)
