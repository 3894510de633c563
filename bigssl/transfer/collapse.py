"""Measures that tell healthy features from collapsed ones, which the loss alone cannot."""

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_std(features: Tensor) -> float:
    """Mean over dimensions of the standard deviation of unit-length features [N, D] (Chen and He 2021).

    1/√D when they point everywhere, 0 when they have collapsed into one direction.
    """
    return F.normalize(features.float(), dim=1).std(0, correction=0).mean().item()


def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of features [N, D]: exp of the entropy of their normalised singular values.

    RankMe (Garrido et al. 2023, arXiv:2210.02885); between 1 (collapsed) and min(N, D). Float64, through the smaller
    of the two Gram matrices.
    """
    x = features.double()
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=1e-300) + eps
    return (-(p * p.log()).sum()).exp().item()


def uniformity(features: Tensor, t: float = 2.0) -> float:
    """log of the mean over pairs of exp(−t‖x − y‖²) for unit-length features [N, D] (Wang and Isola 2020).

    About −3.94 for random directions in 128 dimensions, 0 when collapsed. Quadratic in N: hand in some thousands.
    """
    distances = torch.nn.functional.pdist(F.normalize(features.float(), dim=1))
    return (-t * distances.square()).exp().mean().log().item()
