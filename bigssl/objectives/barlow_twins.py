"""Barlow Twins: the correlation of two views' dimensions is the identity (https://arxiv.org/abs/2103.03230).

    image ─┬─ view 1 ── backbone ── projector ── z1 ┐
           └─ view 2 ── backbone ── projector ── z2 ┴─ C = z1ᵀ z2 / n, each dimension standardised over the global batch

    L = scale · (Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij²)

Standardised by mean and deviation (over n, with 1e-5 added to the variance, as BatchNorm has it) of the n samples of
all ranks, and C is of all of them: a mean over ranks of C's squares would be another loss. `scale` is the authors'
(.024 in their published run), for optimizers whose step depends on it.

The blind line: who sees nothing gives one embedding, which standardised is 0, so C = 0 and L = scale · D. (Embeddings
that have nothing to do with the picture come to D (1 + 1/n) + λ D (D − 1) / n, which is more.) So samples cannot become
one; what lies beside the diagonal keeps dimensions from saying the same, which no spread of samples shows: RankMe does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from bigssl import distributed
from bigssl.data.kinds.views import TwoViews
from bigssl.nets.embeddings.expander import Expander
from bigssl.nets.embeddings.moments import centred, column_products, rows_everywhere
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective
from bigssl.objectives.viewed import OnViews, ViewedConfig

EPSILON = 1e-5


class BarlowTwins(OnViews, Objective):
    """Make each dimension of an embedding alike in two views and unlike the other dimensions (Barlow Twins)."""

    class Config(ViewedConfig):
        hidden: int = Field(8192, ge=1, description="hidden size of the projector")
        dim: int = Field(8192, ge=2, description="size of the embedding")
        redundancy: float = Field(0.005, ge=0, description="weight λ of the correlation of different dimensions")
        scale: float = Field(1.0, gt=0, description="of the whole loss")

    starts = {"hidden": 512, "dim": 512}
    adjustable = ("redundancy", "scale", "augment")
    preset = {"objective": {"hidden": 32, "dim": 32, "redundancy": 0.1}, "backbones": {"image": "resnet"},
              "collapses": 120}  # fmt: skip

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.projector = Expander(self.backbone.dim, config.hidden, config.dim, bias=False)
        self.views = TwoViews(config.augment, self.backbone.size, "byol")

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        embeddings = self.projector(self.seen(batch)).float().chunk(2)
        first, second = map(self._standardised, embeddings)
        diagonal, beside = column_products(first, second)
        count = rows_everywhere(first)
        alike, redundancy = (1 - diagonal / count).square().sum(), beside / count**2
        loss = self.config.scale * (alike + self._redundancy(redundancy))
        return Losses(
            loss, self.config.scale * self.config.dim, unit="squared correlation", blind_name="one embedding for all",
            stats={"alike": alike.detach(), "redundancy": redundancy.detach()},
            spread={"embeddings": distributed.spread(torch.cat(embeddings))},
            views={"embeddings": torch.stack(embeddings).detach()},
        )  # fmt: skip

    def _standardised(self, z: Tensor) -> Tensor:
        rows = centred(z)
        variance = distributed.sum_over_ranks(rows.square().sum(0)) / rows_everywhere(rows)
        return rows * (variance + EPSILON).rsqrt()

    def _redundancy(self, beside: Tensor) -> Tensor:
        return self.config.redundancy * beside

    def guards(self) -> dict[str, Callable[[], None]]:
        return {"what is beside the diagonal": lambda: setattr(self, "_redundancy", lambda beside: 0 * beside)}
