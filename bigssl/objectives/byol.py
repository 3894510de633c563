"""BYOL: one view predicts what a slow copy of the network makes of the other (https://arxiv.org/abs/2006.07733).

    image ─┬─ view 1 ─┬─ online: backbone ── projector ── predictor ── p1, p2 ┐
           └─ view 2 ─┤                                                        ├─ |p1 − t2|² + |p2 − t1|², unit vectors
                      └─ target (moving average of both) ────────────── t1, t2 ┘

The two views are one batch for every BatchNorm. The blind line is the loss of the best constant: with unit targets of
mean length |μ|, (2 − 2|μ|) for each direction, |μ|² estimated from pairs of different samples. Where all is collapsed,
loss and blind line are both 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl import distributed
from bigssl.data.kinds.views import AugmentConfig, TwoViews
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.ema import Ema
from bigssl.nets.heads.base import ProjectionHead
from bigssl.nets.progress import CosineRamp, Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig
from bigssl.objectives.needs import Needs
from bigssl.objectives.seeing import picture_of


class Projected(nn.Module):
    """A backbone and its projector: uint8 [B, 3, H, W] -> [B, dim]."""

    def __init__(self, tower: Tower, projector: nn.Module) -> None:
        super().__init__()
        self.tower, self.projector = tower, projector

    def forward(self, pixels: Tensor) -> Tensor:
        projected: Tensor = self.projector(self.tower.features({"image": pixels}))
        return projected


class Byol(Objective):
    """Predict one view's embedding by a slow copy of the network from another view (BYOL)."""

    class Config(ObjectiveConfig):
        backbone: str = "image"
        hidden: int = Field(4096, ge=1, description="hidden size of projector and predictor")
        dim: int = Field(256, ge=1, description="size of the predicted embedding")
        momentum: float = Field(0.996, ge=0, lt=1, description="of the target at the start; 1 at the end, by a cosine")
        augment: AugmentConfig = AugmentConfig()

    takes = {"backbone": Needs("image")}
    starts = {"hidden": 512, "dim": 128, "momentum": 0.98}
    least = 2  # BatchNorm makes of one sample a constant
    symmetric = scheduled = True
    adjustable = ("momentum", "augment")
    preset = {"objective": {"hidden": 16, "dim": 8, "momentum": 0.9}, "backbones": {"image": "resnet"}}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        backbone = self.backbone_of(towers, "backbone")
        projector = ProjectionHead(backbone.dim, config.hidden, config.dim, bias=False)  # the predictor normalises
        self.online = Projected(backbone, projector)
        self.predictor = ProjectionHead(config.dim, config.hidden, config.dim)
        self.target = Ema(self.online, CosineRamp(config.momentum, 1.0))
        self.size = backbone.size
        self.views = TwoViews(config.augment, self.size, "byol")

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        image = picture_of(sample, self.online.tower)
        return self.views.prepare(image, rng)

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        views = torch.cat(self.views.of(batch))  # [2B, 3, H, W]
        projections = self.online(views)
        predictions = F.normalize(self.predictor(projections).float(), dim=1)
        first, second = self._targets(views).chunk(2)
        loss = (predictions - torch.cat([second, first])).square().sum() / len(first)
        blind = best_constant(first) + best_constant(second)
        spread = {"projections": distributed.spread(projections)}
        return Losses(
            loss, blind, unit="squared distance", blind_name="the best constant", spread=spread,
            views={"projections": torch.stack(projections.detach().float().chunk(2))},
        )  # fmt: skip

    def _targets(self, views: Tensor) -> Tensor:
        """Unit vectors [2B, dim] that are predicted."""
        with torch.no_grad():
            targets = F.normalize(self.target.module(views).float(), dim=1)
        return targets

    def teachers(self) -> dict[str, Ema]:
        return {"target": self.target}

    def guards(self) -> dict[str, Callable[[], None]]:
        def own(views: Tensor) -> Tensor:
            return F.normalize(self.online(views).float(), dim=1)

        return {
            "predictor": lambda: setattr(self, "predictor", nn.Identity()),
            "stop-gradient": lambda: setattr(self, "_targets", own),
        }

    def exports(self) -> dict[str, Head | Network]:
        model = self.target.module.get_submodule("tower.model")
        assert isinstance(model, PreTrainedModel)
        return {f"{self.config.backbone}_teacher": Network(self.config.backbone, model)}


@torch.no_grad()
def best_constant(targets: Tensor) -> Tensor:
    """[] the least mean squared distance of a constant unit vector to unit `targets` [B, D] of all ranks: 2 − 2|μ|.

    A constant chosen in hindsight would profit from a small batch, where the mean of any vectors has some length: |μ|²
    is estimated by the mean product of different samples' targets, without bias. Collective.
    """
    rows = torch.cat([targets, targets.new_ones(len(targets), 1)], dim=1).double()
    sums = distributed.all_reduce_sum(rows.sum(0))
    total, count = sums[:-1], sums[-1]
    squared = (total.square().sum() - count) / (count * (count - 1)).clamp(min=1)
    return (2 - 2 * squared.clamp(0, 1).sqrt()).float()
