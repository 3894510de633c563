"""Measures that tell healthy features from collapsed ones, which the loss alone cannot:

    std        `feature_std`
    rankme     `rankme`
    samples    of which they were taken
    of         what `rankme` could be at most
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl.transfer.bags import WIDTH, Bags, TfIdf
from bigssl.transfer.matrix import Matrix

EPS = 1e-7
SAMPLES = 512  # of raw ones at most, which have many more values than features
COLUMNS = 1024  # of them that are multiplied at once


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
    """Of features that need not fit into memory: D × D numbers are held."""
    if len(features) <= features.width:
        rows = features.read(0, len(features))
        return _health(len(features), features.width, rankme(rows), feature_std(rows))
    gram = torch.zeros(features.width, features.width, dtype=torch.float64)
    sums, squares = torch.zeros(2, features.width, dtype=torch.float64)
    for _, piece in features.pieces():
        x, directions = piece.double(), F.normalize(piece, dim=1).double()
        gram += x.T @ x
        sums += directions.sum(0)
        squares += directions.square().sum(0)
    variance = squares / len(features) - (sums / len(features)).square()
    std = variance.clamp(min=0).sqrt().mean().item()
    return _health(len(features), features.width, _effective_rank(gram), std)


def sampled_health(raw: Matrix) -> dict[str, float]:
    """Of SAMPLES rows at most, at equal distances: SAMPLES × D numbers are held."""
    rows = torch.cat([raw.read(row, row + 1) for row in _spaced(len(raw), min(SAMPLES, raw.rows))])
    gram = sum((part @ part.T for part in _doubles(rows)), torch.zeros(len(rows), len(rows), dtype=torch.float64))
    return _health(len(rows), raw.width, _effective_rank(gram), feature_std(rows))


def text_health(texts: Sequence[str], weights: TfIdf) -> dict[str, float]:
    """The same of raw texts, without `std`: nearly all of their values are 0."""
    some = Bags([texts[row] for row in _spaced(len(texts), SAMPLES)], weights)
    gram = torch.cat([torch.cat([one.products(other) for _, other in some.pieces()], 1) for _, one in some.pieces()])
    found = _health(len(gram), WIDTH, _effective_rank(gram.double()), 0.0)
    return {name: value for name, value in found.items() if name != "std"}


def _health(samples: int, width: int, rank: float, std: float) -> dict[str, float]:
    return {"std": std, "rankme": rank, "samples": samples, "of": min(samples, width)}


def _spaced(count: int, most: int) -> range:
    return range(0, count, -(-count // most))


def _doubles(rows: torch.Tensor) -> Iterable[torch.Tensor]:
    return (part.double() for part in rows.split(COLUMNS, dim=1))
