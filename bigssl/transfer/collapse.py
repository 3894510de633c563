"""Measures that tell healthy features from collapsed ones, which the loss alone cannot."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl.transfer.matrix import Matrix

EPS = 1e-7


def feature_std(features: Tensor) -> float:
    """Mean over dimensions of the standard deviation of unit-length features [N, D] (Chen and He 2021).

    1/√D when they point everywhere, 0 when they have collapsed into one direction.
    """
    return F.normalize(features.float(), dim=1).std(0, correction=0).mean().item()


def rankme(features: Tensor) -> float:
    """Effective rank of features [N, D]: exp of the entropy of their normalised singular values.

    RankMe (Garrido et al. 2023, arXiv:2210.02885); between 1 (collapsed) and min(N, D). Float64, through the smaller
    of the two Gram matrices.
    """
    x = features.double()
    return _effective_rank(x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T)


def _effective_rank(gram: Tensor) -> float:
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=1e-300) + EPS
    return (-(p * p.log()).sum()).exp().item()


def stored_health(features: Matrix) -> dict[str, float]:
    """{"std": `feature_std`, "rankme": `rankme`} of features that need not fit into memory: D × D numbers are held."""
    if len(features) <= features.width:
        rows = features.read(0, len(features))
        return {"std": feature_std(rows), "rankme": rankme(rows)}
    gram = torch.zeros(features.width, features.width, dtype=torch.float64)
    sums, squares = torch.zeros(2, features.width, dtype=torch.float64)
    for _, piece in features.pieces():
        x, directions = piece.double(), F.normalize(piece, dim=1).double()
        gram += x.T @ x
        sums += directions.sum(0)
        squares += directions.square().sum(0)
    variance = squares / len(features) - (sums / len(features)).square()
    return {"std": variance.clamp(min=0).sqrt().mean().item(), "rankme": _effective_rank(gram)}
