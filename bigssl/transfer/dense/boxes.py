"""Boxes [N, 4] (left, top, right, bottom) on tensors: overlap, its generalisation that has a gradient everywhere, and
the choice of one among many that overlap."""

from __future__ import annotations

import torch
from torch import Tensor


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def overlap_of(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union of boxes that are broadcast against each other, and the union."""
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = _areas(one) + _areas(other) - shared
    return shared / union.clamp(min=1e-9), union


def giou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union, less the share of the box around both that neither fills, in (-1, 1] (Rezatofighi et
    al. 2019); boxes [..., 4] that are broadcast against each other."""
    overlap, union = overlap_of(one, other)
    around = torch.cat([torch.minimum(one[..., :2], other[..., :2]), torch.maximum(one[..., 2:], other[..., 2:])], -1)
    whole = _areas(around).clamp(min=1e-9)
    return overlap - (whole - union) / whole


def nms(boxes: Tensor, scores: Tensor, classes: Tensor, most: float) -> Tensor:
    """int64: numbers of the boxes that are kept, the best scored first: those that overlap none of their class before
    them by more than `most`. Of equal scores the first is first."""
    order = torch.argsort(scores, descending=True, stable=True)
    boxes, classes = boxes[order], classes[order]
    close = (overlap_of(boxes[:, None], boxes[None])[0] > most) & (classes[:, None] == classes[None])
    kept = torch.ones(len(order), dtype=torch.bool)
    for at in range(len(order)):
        if kept[at]:
            kept[at + 1 :] &= ~close[at, at + 1 :]
    return order[kept]
