"""SimSiam: one view predicts the other's embedding, which gets no gradient (https://arxiv.org/abs/2011.10566).

    image ─┬─ view 1 ── backbone ── projector ─┬─ z1 ── predictor ── p1 ┐
           └─ view 2 ── backbone ── projector ─┴─ z2 ── predictor ── p2 ┴─ (D(p1, z2) + D(p2, z1)) / 2

D(p, z) = 1 − cos(p, z), z without gradient: the paper's −cos, moved so that 0 is the best. The projector has three
layers (the paper's on CIFAR-10 two), each with a BatchNorm; the predictor is a bottleneck of two. The two views are one
batch for every BatchNorm.

Nothing but the predictor and the missing gradient keeps all samples from becoming one: then the loss is 0, and so is
the blind line, the loss of the best constant (1 − |μ|, see byol.py). The BatchNorm at the end of the projector has no
scale of its own, so that samples first become all but one: their spread falls with the size of the batch, their rank
(RankMe) to little more than 1. The paper keeps the predictor's rate constant while the others' falls, for .4 % on
ImageNet (its table 1): here all follow the recipe's schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bigssl import distributed
from bigssl.data.kinds.views import TwoViews
from bigssl.nets.heads.base import ProjectionHead
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective
from bigssl.objectives.byol import best_constant
from bigssl.objectives.viewed import OnViews, ViewedConfig


class SimSiam(OnViews, Objective):
    """Predict one view's embedding from another's, without negatives and without a teacher (SimSiam)."""

    class Config(ViewedConfig):
        hidden: int = Field(2048, ge=1, description="hidden size of the projector")
        dim: int = Field(2048, ge=1, description="size of the predicted embedding")
        layers: int = Field(3, ge=2, description="of the projector; in the paper 2 on CIFAR-10")
        bottleneck: int = Field(512, ge=1, description="hidden size of the predictor, a quarter of dim in the paper")

    starts = {"hidden": 512, "dim": 256, "bottleneck": 64}
    adjustable = ("augment",)
    preset = {"objective": {"hidden": 64, "dim": 64, "bottleneck": 16}, "backbones": {"image": "resnet"},
              "collapses": 120}  # fmt: skip

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.projector = ProjectionHead(
            self.backbone.dim, config.hidden, config.dim, layers=config.layers, last_norm=True
        )
        self.predictor = ProjectionHead(config.dim, config.bottleneck, config.dim)
        self.views = TwoViews(config.augment, self.backbone.size, "moco-v2")

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        embeddings = self.projector(self.seen(batch)).float()
        predictions = F.normalize(self.predictor(embeddings).float(), dim=1)
        first, second = self._targets(embeddings).chunk(2)  # unit vectors
        loss = 1 - (predictions * torch.cat([second, first])).sum(1).mean()
        targets = first.detach(), second.detach()
        blind = sum(best_constant(each) for each in targets) / 4  # of squared distances, 2 − 2 cos
        return Losses(
            loss, blind, unit="cosine distance", blind_name="the best constant",
            spread={"projections": distributed.spread(embeddings)}, views={"projections": torch.stack(targets)},
        )  # fmt: skip

    def _targets(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings.detach(), dim=1)

    def guards(self) -> dict[str, Callable[[], None]]:
        return {
            "predictor": lambda: setattr(self, "predictor", nn.Identity()),
            "stop-gradient": lambda: setattr(self, "_targets", lambda embeddings: F.normalize(embeddings, dim=1)),
        }
