"""Heads that read maps of features: one that names the class of each pixel, and one that finds boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigssl.transfer.dense.maps import Maps, grid_of

RARE = -4.6  # logit of a class of a cell at first: one in a hundred, or the many empty cells drown the rest (RetinaNet)


class Neck(nn.Module):
    """Maps of several sizes -> one [B, width, h, w]: each cell's features at equal scale (LayerNorm without weights), a
    1 × 1 convolution of each map, and their sum on a common grid. The linear model of all maps drawn to one size and
    put one behind the other (Hariharan et al. 2015), without ever making that."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.reads = nn.ModuleList(nn.Conv2d(each, width, 1, bias=at == 0) for at, each in enumerate(widths))

    def forward(self, maps: Maps, grid: tuple[int, int]) -> Tensor:
        return torch.stack([
            _drawn(read(_normed(each)), grid) for read, each in zip(self.reads, maps, strict=True)
        ]).sum(0)  # fmt: skip


def _normed(features: Tensor) -> Tensor:
    return F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)


def _drawn(features: Tensor, grid: tuple[int, int]) -> Tensor:
    if grid_of(features) == grid:
        return features
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)


class SegmentHead(nn.Module):
    """Linear: the class of each pixel from the features around it, logits drawn bilinearly to the picture's size."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.neck = Neck(widths, classes)

    def forward(self, maps: Maps, size: int) -> Tensor:
        """-> logits [B, classes, size, size]."""
        return _drawn(self.neck(maps, grid_of(maps[0])), (size, size))


class DetectHead(nn.Module):
    """Of each cell of one grid: logits of classes [B, C, h, w], the distances of the four sides of a box from the
    cell's centre [B, 4, h, w] in cells (left, top, right, bottom; > 0), and the logit of how central it lies [B, h, w].

    One level of FCOS (Tian et al. 2019): no anchors, the finest grid with at most `CELLS` a side.
    """

    CELLS = 32
    WIDTH = 64

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.neck = Neck(widths, self.WIDTH)
        self.tower = nn.Sequential(*(
            layer for _ in range(2) for layer in (
                nn.GroupNorm(8, self.WIDTH), nn.ReLU(), nn.Conv2d(self.WIDTH, self.WIDTH, 3, padding=1))
        ), nn.ReLU())  # fmt: skip
        self.classes = nn.Conv2d(self.WIDTH, classes, 3, padding=1)
        self.sides = nn.Conv2d(self.WIDTH, 5, 3, padding=1)
        assert self.classes.bias is not None
        nn.init.constant_(self.classes.bias, RARE)

    def forward(self, maps: Maps) -> tuple[Tensor, Tensor, Tensor]:
        grid = next((grid_of(each) for each in maps if max(grid_of(each)) <= self.CELLS), grid_of(maps[-1]))
        found = self.tower(self.neck(maps, grid))
        sides = self.sides(found)
        most = 2.0 * max(grid)
        return self.classes(found), sides[:, :4].clamp(max=8).exp().clamp(max=most), sides[:, 4]
