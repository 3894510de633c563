"""How cells of one grid are taught to find boxes, and what they found (FCOS, Tian et al. 2019; one level)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl.transfer.dense.boxes import giou, nms
from bigssl.transfer.features import finite

Outputs = tuple[Tensor, Tensor, Tensor]
RADIUS = 1.5  # cells from the middle of a box within which one may answer for it
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss
CANDIDATES, OVERLAP, MOST = 300, 0.6, 100
NONE, UNJUDGED = -1, -2


class Wanted(NamedTuple):
    """Of one view. boxes: float32 [N, 4] (left, top, right, bottom) in its pixels; classes: int64 [N]; ignored: bool
    [N], where a cell is neither right nor wrong."""

    boxes: Tensor
    classes: Tensor
    ignored: Tensor


def centres(grid: tuple[int, int], size: int) -> tuple[Tensor, float, float]:
    """(x and y of the middles of the cells of a view, float32 [h · w, 2], and a cell's width and height)."""
    wide, high = size / grid[1], size / grid[0]
    ys, xs = torch.meshgrid((torch.arange(grid[0]) + 0.5) * high, (torch.arange(grid[1]) + 0.5) * wide, indexing="ij")
    return torch.stack([xs, ys], -1).flatten(0, 1), wide, high


def assigned(wanted: Wanted, grid: tuple[int, int], size: int) -> Tensor:
    """int64 [h · w]: the number of the box that each cell answers for, NONE or UNJUDGED.

    A cell answers for the smallest box that holds its middle not far from its own; the cell that holds the middle of a
    box always may, so that none is without one unless a smaller one has the same. Boxes that are ignored have none.
    """
    points, wide, high = centres(grid, size)
    found = torch.full((len(points),), NONE)
    if not len(wanted.boxes):
        return found
    boxes = wanted.boxes
    within = (points[:, None] > boxes[None, :, :2]).all(-1) & (points[:, None] < boxes[None, :, 2:]).all(-1)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    cell = torch.tensor([wide, high])
    distance = (points[:, None] - middle[None]).abs() / cell
    home = torch.stack([(middle[:, 0] / wide).long().clamp(max=grid[1] - 1),
                        (middle[:, 1] / high).long().clamp(max=grid[0] - 1)], 1)  # fmt: skip
    own = torch.arange(len(points))[:, None] == home[:, 1] * grid[1] + home[:, 0]
    mine = ((within & (distance < RADIUS).all(-1)) | own) & ~wanted.ignored
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    smallest = torch.where(mine, areas, torch.inf).min(1)
    found[(within & wanted.ignored).any(1)] = UNJUDGED
    return torch.where(smallest.values < torch.inf, smallest.indices, found)


def detect_loss(outputs: Outputs, wanted: Sequence[Wanted], size: int) -> Tensor:
    """Focal loss of the classes (Lin et al. 2017) + 1 - GIoU of the boxes + cross-entropy of the centre-ness, a scalar:
    sums over cells, by the number of those that answer for a box."""
    logits, sides, central = (each.float() for each in outputs)
    grid = (logits.shape[-2], logits.shape[-1])
    device = logits.device
    numbers = torch.stack([assigned(each, grid, size) for each in wanted])  # [B, cells]
    taught = (numbers >= 0).to(device)
    classes = torch.zeros(*numbers.shape, logits.shape[1])
    boxes = torch.zeros(*numbers.shape, 4)
    for at, each in enumerate(wanted):
        cells = (numbers[at] >= 0).nonzero()[:, 0]
        classes[at, cells, each.classes[numbers[at, cells]]] = 1.0
        boxes[at, cells] = each.boxes[numbers[at, cells]]
    count = taught.sum().clamp(min=1)
    judged = (numbers != UNJUDGED).to(device)
    focal = _focal(logits.flatten(2).transpose(1, 2), classes.to(device))[judged].sum() / count
    target = boxes.to(device)[taught]
    points, *cell = centres(grid, size)
    middle = points.to(device).expand(len(wanted), -1, -1)[taught]
    found = _corners(middle, sides.flatten(2).transpose(1, 2)[taught], cell)
    centrality = _centrality(middle, target)
    weight = centrality.sum().clamp(min=1e-6)
    overlap = ((1 - giou(found, target)) * centrality).sum() / weight
    central = F.binary_cross_entropy_with_logits(central.flatten(1)[taught], centrality, reduction="sum") / count
    return focal + overlap + central


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    hit = torch.where(wanted > 0, logits.sigmoid(), 1 - logits.sigmoid())
    return torch.where(wanted > 0, ALPHA, 1 - ALPHA) * (1 - hit) ** GAMMA * loss


def _corners(middle: Tensor, sides: Tensor, cell: Sequence[float]) -> Tensor:
    """Middles [..., 2] and distances of sides [..., 4] in cells -> boxes [..., 4] in pixels."""
    lengths = sides * torch.tensor([*cell, *cell], device=sides.device)
    return torch.cat([middle - lengths[..., :2], middle + lengths[..., 2:]], -1)


def _centrality(middle: Tensor, boxes: Tensor) -> Tensor:
    """1 in the middle of a box, 0 at its edges."""
    low, high = (middle - boxes[..., :2]).clamp(min=1e-3), (boxes[..., 2:] - middle).clamp(min=1e-3)
    return (torch.minimum(low, high) / torch.maximum(low, high)).prod(-1).sqrt()


class FoundBoxes(NamedTuple):
    """boxes float32 [N, 4] (left, top, right, bottom) in pixels of a view, scores float32 [N], classes int64 [N]."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def detections(outputs: Outputs, size: int) -> list[FoundBoxes]:
    """What a head found in each view, on the CPU, the best first: at most MOST boxes, those of a class that overlap
    one that scores higher left out."""
    logits, sides, central = (finite(each.float().cpu(), "outputs of the detector") for each in outputs)
    grid = (logits.shape[-2], logits.shape[-1])
    points, *cell = centres(grid, size)
    scores = (logits.flatten(2).sigmoid() * central.flatten(1).sigmoid()[:, None]).sqrt().transpose(1, 2)
    boxes = _corners(points, sides.flatten(2).transpose(1, 2), cell).clamp(0, size)
    return [_chosen(*each) for each in zip(boxes, scores, strict=True)]


def _chosen(boxes: Tensor, scores: Tensor) -> FoundBoxes:
    best = scores.flatten().topk(min(CANDIDATES, scores.numel()))
    cells, classes = best.indices // scores.shape[1], best.indices % scores.shape[1]
    kept = nms(boxes[cells], best.values, classes, OVERLAP)[:MOST]
    return FoundBoxes(boxes[cells[kept]], best.values[kept], classes[kept])
