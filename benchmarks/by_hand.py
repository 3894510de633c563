"""Steps of the objectives of pictures as somebody writes them by hand, for one process: what `objectives.py` compares
with. Each function takes the networks of an objective (copies, BatchNorm as torch has it) and returns what a step
computes of a batch; the maths is that of the objective, which `objectives.py` verifies before it takes times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ByHand(NamedTuple):
    """nets: what is trained. loss: of a batch. teachers: pairs of a slow network and its student, with the momentum."""

    nets: nn.Module
    loss: Callable[[dict[str, Any]], Tensor]
    teachers: list[tuple[nn.Module, nn.Module, float]] = []  # noqa: RUF012 - nobody writes to it


HANDS: dict[str, Callable[[Any], ByHand]] = {}
"""By the name of a task, of an objective that nothing was done with yet."""


def hand(make: Callable[[Any], ByHand]) -> Callable[[Any], ByHand]:
    HANDS[make.__name__] = make
    return make


def plain(module: nn.Module) -> Any:
    """A copy with torch's own BatchNorm in place of ours."""
    twin = copy.deepcopy(module)

    def replace(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, nn.SyncBatchNorm):
                kind = nn.BatchNorm2d if parent_is_map(parent) else nn.BatchNorm1d
                new = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
                new.load_state_dict(child.state_dict())
                setattr(parent, name, new)
            else:
                replace(child)

    replace(twin)
    return twin


def parent_is_map(parent: nn.Module) -> bool:
    """Whether what stands beside a BatchNorm is a convolution."""
    return any(isinstance(child, nn.Conv2d) for child in parent.children())


def normalised(pictures: Tensor) -> Tensor:
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def mean_features(model: nn.Module, pictures: Tensor) -> Tensor:
    hidden = model(pixel_values=normalised(pictures)).last_hidden_state
    return hidden.mean((2, 3)) if hidden.dim() == 4 else hidden[:, 1:].mean(1)


def both(batch: dict[str, Any]) -> Tensor:
    return torch.cat([batch["view1"], batch["view2"]])


@hand
def simclr(task: Any) -> ByHand:
    nets, t = nn.ModuleList([plain(task.backbone.model), plain(task.head)]), task.config.temperature

    def loss(batch: dict[str, Any]) -> Tensor:
        z = F.normalize(nets[1](mean_features(nets[0], both(batch))).float(), dim=1)
        similarity = (z @ z.T / t).fill_diagonal_(float("-inf"))
        return F.cross_entropy(similarity, torch.arange(len(z)).roll(len(z) // 2))

    return ByHand(nets, loss)


@hand
def byol(task: Any) -> ByHand:
    online = [plain(task.online.tower.model), plain(task.online.projector), plain(task.predictor)]
    nets, slow = nn.ModuleList(online), copy.deepcopy(online[:2])

    def loss(batch: dict[str, Any]) -> Tensor:
        views = both(batch)
        made = F.normalize(nets[2](nets[1](mean_features(nets[0], views))).float(), dim=1)
        with torch.no_grad():
            target = F.normalize(slow[1](mean_features(slow[0], views)).float(), dim=1).roll(len(views) // 2, 0)
        return 2 * (2 - 2 * (made * target).sum(1)).mean()

    return ByHand(nets, loss, [(old, new, task.config.momentum) for old, new in zip(slow, online, strict=False)])


@hand
def simsiam(task: Any) -> ByHand:
    nets = nn.ModuleList([plain(task.backbone.model), plain(task.projector), plain(task.predictor)])

    def loss(batch: dict[str, Any]) -> Tensor:
        z = nets[1](mean_features(nets[0], both(batch))).float()
        return 1 - F.cosine_similarity(nets[2](z).float(), z.detach().roll(len(z) // 2, 0)).mean()

    return ByHand(nets, loss)


@hand
def vicreg(task: Any) -> ByHand:
    nets, weights = nn.ModuleList([plain(task.backbone.model), plain(task.expander)]), task.config

    def terms(z: Tensor) -> tuple[Tensor, Tensor]:
        rows = z - z.mean(0)
        covariance = rows.T @ rows / (len(z) - 1)
        off = covariance.square().sum() - covariance.diagonal().square().sum()
        return F.relu(1 - (rows.var(0) + 1e-4).sqrt()).mean(), off / z.shape[1]

    def loss(batch: dict[str, Any]) -> Tensor:
        one, two = nets[1](mean_features(nets[0], both(batch))).float().chunk(2)
        with torch.autocast("cpu", enabled=False):
            (v1, c1), (v2, c2) = terms(one), terms(two)
            return (weights.invariance * F.mse_loss(one, two) + weights.variance * (v1 + v2) / 2
                    + weights.covariance * (c1 + c2))  # fmt: skip

    return ByHand(nets, loss)


@hand
def barlow_twins(task: Any) -> ByHand:
    nets, c = nn.ModuleList([plain(task.backbone.model), plain(task.projector)]), task.config
    norm = nn.BatchNorm1d(c.dim, affine=False)

    def loss(batch: dict[str, Any]) -> Tensor:
        one, two = nets[1](mean_features(nets[0], both(batch))).float().chunk(2)
        with torch.autocast("cpu", enabled=False):
            cross = norm(one).T @ norm(two) / len(one)
            diagonal = cross.diagonal()
            off = cross.square().sum() - diagonal.square().sum()
            return c.scale * ((diagonal - 1).square().sum() + c.redundancy * off)

    return ByHand(nets, loss)
