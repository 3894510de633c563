"""A class of what stands at the first token: the head of tasks that judge a pair of texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PooledHead(nn.Module):
    """[CLS] ── dense ── tanh ── linear: BERT's pooler and classifier (Devlin et al. 2019), and ALBERT's, as
    transformers has them."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.classifier = nn.Linear(dim, classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, T, dim] -> logits [B, classes]."""
        logits: Tensor = self.classifier(torch.tanh(self.dense(hidden[:, 0])))
        return logits
