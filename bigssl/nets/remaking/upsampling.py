"""A light decoder: from a small map of many channels to a picture, twice the side at a time."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from bigssl.nets.norm import group_norm

NARROWEST = 16  # channels of the finest stage at least


class Upsampling(nn.Module):
    """Stages of doubling the side (nearest neighbour, then a 3 × 3 convolution, which leaves no checkerboard: Odena et
    al. 2016, https://doi.org/10.23915/distill.00003), GroupNorm and ReLU; each has half the channels of the one before.
    """

    def __init__(self, *, dim: int, side: int, size: int, width: int, channels: int) -> None:
        """
        Args:
            dim: channels of the map. side: of it. size: of the pictures.
            width: channels of the first stage. channels: of the pictures.
        """
        super().__init__()
        self.size, self.side = size, side
        doublings = max(1, math.ceil(math.log2(size / side)))
        widths = [max(NARROWEST, width >> stage) for stage in range(doublings)]
        self.entry = nn.Conv2d(dim, widths[0], 1)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), group_norm(after), nn.ReLU())
            for before, after in zip([widths[0], *widths], widths, strict=False)
        )
        self.exit = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, dim, side, side] -> float32 [B, channels, size, size]."""
        states = self.entry(hidden)
        for number, stage in enumerate(self.stages, 1):
            states = stage(F.interpolate(states, size=min(self.size, self.side << number), mode="nearest"))
        pixels: Tensor = self.exit(states).float()
        return pixels
