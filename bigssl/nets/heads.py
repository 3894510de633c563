"""Heads that pretraining puts on a backbone and transfer throws away (CLIP's projections excepted)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bigssl.nets.norm import GlobalBatchNorm
from bigssl_kernels import linear_cross_entropy


class ProjectionHead(nn.Module):
    """Two-layer MLP with BatchNorm (SimCLR, Chen et al. 2020): [B, dim] -> [B, out], dtype kept."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), GlobalBatchNorm(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out)
        )

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.layers(features)
        return projected


class MaskedLanguageHead(nn.Module):
    """BERT's head (Devlin et al. 2019) up to the loss, on the masked tokens only.

    The tied embedding is registered here as well, so that ZeRO-3 gathers it for this module's forward and backward.
    """

    def __init__(self, embedding: nn.Parameter, epsilon: float = 1e-12) -> None:
        super().__init__()
        vocabulary, dim = embedding.shape
        self.weight = embedding  # [V, H]
        self.bias = nn.Parameter(embedding.new_zeros(vocabulary))
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=epsilon)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross-entropies over the labelled tokens.

        Args:
            hidden: [B, T, H].
            labels: int64 [B, T], -100 where there is nothing to predict.

        Returns:
            [] float32; 0 with zero gradients where no token is labelled.
        """
        rows = (labels != -100).flatten().nonzero().squeeze(1)
        picked = hidden.flatten(0, 1).index_select(0, rows)  # [M, H]
        transformed = self.norm(F.gelu(self.dense(picked)))
        return linear_cross_entropy(
            transformed, self.weight, labels.flatten().index_select(0, rows), self.bias, reduction="sum"
        )
