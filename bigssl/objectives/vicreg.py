"""VICReg: two views alike, each dimension spread, different dimensions uncorrelated (https://arxiv.org/abs/2105.04906).

    image ─┬─ view 1 ── backbone ── expander ── z  ┐
           └─ view 2 ── backbone ── expander ── z' ┴─ invariance, variance and covariance of the global batch

    L = λ s(z, z') + μ (v(z) + v(z')) / 2 + ν (c(z) + c(z'))
    s = mean of (z − z')²            v = mean over dimensions of max(0, 1 − √(var + 1e-4))
    c = Σ over pairs of different dimensions of their covariance², over the number of dimensions

variance and covariance with n − 1 of the n samples of all ranks. The means and halves are those of the authors' code,
with which the weights 25, 25 and 1 belong (the paper's formula sums s over dimensions and v over views).

The blind line: who sees nothing gives one embedding, whatever it is: s = c = 0 and v = 1 − .01, so .99 μ. The variance
term keeps samples apart; its spread is the mean of min(std, 1), since an embedding that shrinks keeps its directions,
of which unit vectors would show nothing. The covariance term keeps dimensions from saying the same: without it the rank
of the embeddings falls, slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from bigssl.data.kinds.views import TwoViews
from bigssl.nets.embeddings.expander import Expander
from bigssl.nets.embeddings.moments import centred, column_products, rows_everywhere
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective
from bigssl.objectives.viewed import OnViews, ViewedConfig

EPSILON = 1e-4


class Vicreg(OnViews, Objective):
    """Keep two views of an image alike, samples apart and dimensions uncorrelated (VICReg)."""

    class Config(ViewedConfig):
        hidden: int = Field(8192, ge=1, description="hidden size of the expander")
        dim: int = Field(8192, ge=2, description="size of the embedding")
        invariance: float = Field(25.0, ge=0, description="weight λ of the distance of two views")
        variance: float = Field(25.0, gt=0, description="weight μ of dimensions whose deviation is below 1")
        covariance: float = Field(1.0, ge=0, description="weight ν of the covariance of different dimensions")

    starts = {"hidden": 512, "dim": 512}
    adjustable = ("invariance", "variance", "covariance", "augment")
    preset = {"objective": {"hidden": 16, "dim": 8}, "backbones": {"image": "resnet"}}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.expander = Expander(self.backbone.dim, config.hidden, config.dim, bias=False)
        self.views = TwoViews(config.augment, self.backbone.size, "byol")

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        embeddings = self.expander(self.seen(batch)).float().chunk(2)
        deviations, covariances = zip(*map(_deviation_and_covariance, embeddings), strict=True)
        invariance = (embeddings[0] - embeddings[1]).square().mean()
        variance, covariance = self._variance(torch.stack(deviations)), torch.stack(covariances).sum()
        weights = self.config
        loss = weights.invariance * invariance + weights.variance * variance + weights.covariance * covariance
        return Losses(
            loss, weights.variance * (1 - EPSILON**0.5), unit="weighted squares", blind_name="one embedding for all",
            stats={
                "invariance": invariance.detach(), "deviation": torch.stack(deviations).detach().mean(),
                "covariance": (torch.stack(covariances).detach().mean() / (self.config.dim - 1)).clamp(min=0).sqrt(),
            },
            spread={"embeddings": torch.stack(deviations).detach().clamp(max=1).mean()},
            views={"embeddings": torch.stack(embeddings).detach()},
        )  # fmt: skip

    def _variance(self, deviations: Tensor) -> Tensor:
        return (1 - deviations).clamp(min=0).mean()

    def guards(self) -> dict[str, Callable[[], None]]:
        return {"variance term": lambda: setattr(self, "_variance", lambda deviations: 0 * deviations.mean())}


def _deviation_and_covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    """[B, D] -> √(var + ε) [D], and c(z) []."""
    rows = centred(z)
    squares, beside = column_products(rows, rows)
    free = rows_everywhere(z) - 1
    return (squares / free + EPSILON).sqrt(), beside / free**2 / z.shape[1]
