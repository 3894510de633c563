"""Heads of replaced-token detection (ELECTRA, Clark et al. 2020, https://arxiv.org/abs/2003.10555)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigssl.nets.chance import noise
from bigssl.nets.heads.base import IGNORED, MaskedLanguageHead, labelled_rows

_LOGITS = 1 << 24  # held at a time while tokens are drawn


class GeneratorHead(MaskedLanguageHead):
    """A head of masked language modelling that also draws tokens."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, labels: Tensor, seeds: Tensor, most: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The sum of `MaskedLanguageHead`, and a token for each labelled place drawn by the softmax of its logits.

        Args:
            hidden: [B, T, H]. labels, most: as there.
            seeds: int64 [B, T], of each place: what is drawn follows from it, and not from the rank.

        Returns:
            [] float32, and int64 [B, T]: what was drawn, without gradient; `IGNORED` where there is no label.
        """
        loss = super().forward(hidden, labels, most)
        with torch.no_grad():
            rows = labelled_rows(labels.flatten(), most)
            drawn = torch.full_like(labels, IGNORED).flatten()
            for part in rows.split(max(1, _LOGITS // len(self.weight))):
                logits = self.logits(hidden.flatten(0, 1).index_select(0, part)).float()
                chance = noise.gumbel(seeds.flatten()[part], "token", logits.shape[1])
                drawn[part] = (logits + chance).argmax(-1)
            return loss, drawn.view_as(labels).where(labels != IGNORED, IGNORED)  # spare rows are no labelled places


class DiscriminatorHead(nn.Module):
    """A logit of "replaced" for each token: dense layer, activation, one output, as in the paper's code."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense, self.out = nn.Linear(dim, dim), nn.Linear(dim, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, H] -> float32 [B, T]."""
        logits: Tensor = self.out(F.gelu(self.dense(hidden))).squeeze(-1)
        return logits.float()
