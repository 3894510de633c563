"""LeJEPA: views predict each other, and embeddings are a round Gaussian cloud (https://arxiv.org/abs/2511.08544).

    image ─┬─ view 1 ── backbone ── projector ── z1 ┐
           └─ view 2 ── backbone ── projector ── z2 ┴─ (1 − λ) mean of (z_v − z̄)² + λ mean over views of SIGReg(z_v)

z̄ is the mean of a sample's views: two of them, where the paper has two large and some small crops. There is no
teacher, no predictor, no stop-gradient: SIGReg alone keeps embeddings from becoming one. It looks at them along random
unit directions a (new ones each step, the same on all ranks) and asks by the test of Epps and Pulley (1983) whether
what it sees there is a standard normal distribution:

    SIGReg(z) = mean over a of n ∫ |φ_a(t) − e^(−t²/2)|² e^(−t²/2) dt,      φ_a(t) = mean over samples of e^(i t a·z)

by the trapezoidal rule at the paper's 17 points from −5 to 5 (of which those below 0 mirror the others), φ_a and n of
the global batch. Standard normal samples give √(2π) (1 − 1/√3) = 1.06 on average, whatever n.

The blind line: one embedding for all is at its best 0, where SIGReg is n √(2π) (1 − √2 + 1/√3) = .409 n. The spread is
the mean of min(std, 1), the aim being 1: what shrinks to 0 keeps its directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bigssl import distributed
from bigssl.data.kinds.views import TwoViews
from bigssl.nets.chance import noise
from bigssl.nets.embeddings.expander import Expander
from bigssl.nets.embeddings.moments import centred, rows_everywhere
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective
from bigssl.objectives.viewed import OnViews, ViewedConfig
from bigssl_kernels.dispatch import exact

POINTS, REACH = 17, 5.0
STEP = 2 * REACH / (POINTS - 1)
PLACES = [STEP * n for n in range(1, (POINTS + 1) // 2)]
"""t > 0; at 0 nothing differs."""
GAUSS = [float(np.exp(-t * t / 2)) for t in PLACES]
SHARES = [2 * STEP * phi * (0.5 if t == REACH else 1) for t, phi in zip(PLACES, GAUSS, strict=True)]
"""Of the integral, both sides of 0 together."""
OF_ONE_POINT = sum(share * (1 - phi) ** 2 for share, phi in zip(SHARES, GAUSS, strict=True))
"""SIGReg over n where all embeddings are 0: .409."""


class Lejepa(OnViews, Objective):
    """Predict each view of an image from the others, in a Gaussian cloud of embeddings (LeJEPA)."""

    class Config(ViewedConfig):
        hidden: int = Field(2048, ge=1, description="hidden size of the projector")
        dim: int = Field(128, ge=1, description="size of the embedding")
        regularisation: float = Field(0.05, gt=0, lt=1, description="share λ of SIGReg in the loss")
        directions: int = Field(1024, ge=1, description="along which SIGReg looks at the embeddings")

    starts = {"hidden": 512, "dim": 64, "directions": 256}
    scheduled = True  # other directions at each step
    adjustable = ("regularisation", "directions", "augment")
    preset = {"objective": {"hidden": 16, "dim": 8, "directions": 32}, "backbones": {"image": "resnet"}}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.projector = Expander(self.backbone.dim, config.hidden, config.dim, bias=True)
        self.views = TwoViews(config.augment, self.backbone.size, "lejepa")

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        embeddings = torch.stack(self.projector(self.seen(batch)).float().chunk(2))  # [V, B, D]
        prediction = (embeddings - embeddings.mean(0)).square().mean()
        directions = self._directions(at, embeddings.device)
        normality = torch.stack([self._normality(each, directions) for each in embeddings]).mean()
        share = self.config.regularisation
        count = rows_everywhere(embeddings[0])
        rows = centred(embeddings.detach().flatten(0, 1))
        deviation = (distributed.all_reduce_sum(rows.square().sum(0)) / rows_everywhere(rows)).sqrt()
        return Losses(
            (1 - share) * prediction + share * normality, share * count * OF_ONE_POINT, unit="weighted squares",
            blind_name="one embedding for all",
            stats={"prediction": prediction.detach(), "sigreg": normality.detach()},
            spread={"embeddings": deviation.clamp(max=1).mean()}, views={"embeddings": embeddings.detach()},
        )  # fmt: skip

    def _directions(self, at: Progress, device: torch.device) -> Tensor:
        """Unit columns [D, K], of the step alone."""
        step = torch.full((1,), at.step, dtype=torch.int64, device=device)
        drawn = noise.gaussian(step, "directions", self.config.dim * self.config.directions)
        return torch.nn.functional.normalize(drawn.view(self.config.dim, self.config.directions), dim=0)

    def _normality(self, z: Tensor, directions: Tensor) -> Tensor:
        return sliced_epps_pulley(z, directions)

    def guards(self) -> dict[str, Callable[[], None]]:
        return {"SIGReg": lambda: setattr(self, "_normality", lambda z, directions: 0 * z.sum())}


@exact
def sliced_epps_pulley(z: Tensor, directions: Tensor) -> Tensor:
    """[] the mean over directions of Epps and Pulley's statistic against N(0, 1), over all ranks' rows, with exact
    gradients.

    Args:
        z: float32 [B, D].
        directions: float32 [D, K], unit columns, the same on every rank.
    """
    seen = z @ directions  # [B, K]
    waves = [(wave(t * seen)).sum(0) for t in PLACES for wave in (torch.cos, torch.sin)]
    count = rows_everywhere(z)
    means = (distributed.sum_over_ranks(torch.stack(waves)) / count).view(len(PLACES), 2, -1)
    gauss, shares = z.new_tensor(GAUSS)[:, None], z.new_tensor(SHARES)
    distance = (means[:, 0] - gauss).square() + means[:, 1].square()  # [T, K]
    return count * (shares @ distance).mean()
