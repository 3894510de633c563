"""The three-layer head of SimSiam, Barlow Twins, VICReg and LeJEPA."""

from __future__ import annotations

from torch import Tensor, nn

from bigssl.nets.norm import GlobalBatchNorm


class Expander(nn.Module):
    """Three linear layers, BatchNorm and ReLU between them: [B, dim] -> [B, out], dtype kept."""

    def __init__(self, dim: int, hidden: int, out: int, *, bias: bool) -> None:
        """bias: of the last layer. Without, where what follows takes the mean off: its gradient would be rounding noise
        that Adam walks along."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), GlobalBatchNorm(hidden), nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden, bias=False), GlobalBatchNorm(hidden), nn.ReLU(inplace=True),
            nn.Linear(hidden, out, bias=bias),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        expanded: Tensor = self.layers(features)
        return expanded
