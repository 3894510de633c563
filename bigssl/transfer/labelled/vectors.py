"""Vectors of samples for a linear model: features as they are, or wide raw input by its products with some samples.

A linear model with a penalty on its weights depends on products of vectors alone, and its weights lie in the span of
the vectors it learns from. So a vector of a million n-grams, or of the pixels of a picture, can be replaced by few
numbers whose products are the same: exactly, while there are no more than `LANDMARKS` samples to learn from; with more,
by those of that many of them (Williams and Seeger 2001).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from bigssl.transfer.bags import Bags
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.matrix import Matrix
from bigssl.transfer.subjects import Encoded

LANDMARKS = 2048
WIDE = 4096  # values of a vector from which on products stand for them
ENERGY = 512.0  # mean square of the length of vectors that products stand for, as of so many standardised features

Piece = Any  # rows: a tensor float32 [n, D], or a sparse matrix


class Learnable(Protocol):
    """The vectors of samples that are learnt from, and of those that are judged."""

    def of(self, trial: Trial) -> tuple[Tensor, Tensor]:
        """(float32 [n, D] of the samples of the trial, float32 [N, D] of all that are judged), which depend on no other
        sample that is learnt from."""
        ...


@dataclass(frozen=True)
class Standardised:
    """Features at mean 0 and variance 1 among the samples that are learnt from (0 where they do not vary).

    train, queries: float32 [M, D], [N, D].
    """

    train: Tensor
    queries: Tensor

    def of(self, trial: Trial) -> tuple[Tensor, Tensor]:
        return _standardised(self.train[trial.rows], self.queries)


@dataclass(frozen=True)
class StandardisedLater:
    """The same of features that are read when a trial needs them: of several contenders, those of one are in memory.

    at, asked: int64 [M], [N], the row of each sample in the matrices.
    """

    train: Matrix
    queries: Matrix
    at: Tensor
    asked: Tensor

    def of(self, trial: Trial) -> tuple[Tensor, Tensor]:
        different, back = self.at[trial.rows].unique(return_inverse=True)
        seen = torch.cat([piece[inside] for inside, piece in _chosen(self.train.pieces(), different)])
        return _standardised(seen[back], self.queries.read(0, len(self.queries))[self.asked])


def _standardised(seen: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    mean, deviation = seen.double().mean(0), seen.double().std(0, correction=0)
    scale = torch.where(deviation > 1e-6 * seen.abs().amax(0), deviation.clamp(min=1e-30).reciprocal(), 0.0)
    shift, scale = mean.float(), scale.float()
    return (seen - shift) * scale, (queries - shift) * scale


@dataclass(frozen=True)
class Spanned:
    """Wide vectors, of which products are taken.

    train, queries: their pieces, one after the other. at, asked: int64 [M], [N], the row of each sample in them.
    made: the last result; with all samples, that of every seed.
    """

    train: Callable[[], Iterator[tuple[range, Piece]]]
    queries: Callable[[], Iterator[tuple[range, Piece]]]
    at: Tensor
    asked: Tensor
    made: list[tuple[Tensor, tuple[Tensor, Tensor]]] = field(default_factory=list)

    def of(self, trial: Trial) -> tuple[Tensor, Tensor]:
        if not self.made or not torch.equal(self.made[0][0], trial.rows):
            self.made[:] = [(trial.rows, self._along(trial.rows))]
        return self.made[0][1]

    def _along(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        different, back = self.at[rows].unique(return_inverse=True)
        spread = torch.linspace(0, len(different) - 1, min(len(different), LANDMARKS)).round().long()
        landmarks = _stacked([piece[inside] for inside, piece in _chosen(self.train(), different[spread])])
        factor, scale = _root(_products(landmarks, landmarks))

        def along(parts: Iterator[Piece]) -> Tensor:
            made = [torch.linalg.solve_triangular(factor, _products(part, landmarks).T, upper=False).T.float()
                    for part in parts]  # fmt: skip
            return torch.cat(made) * scale

        learnt = along(piece[inside] for inside, piece in _chosen(self.train(), different))
        return learnt[back], along(piece for _, piece in self.queries())[self.asked]


@dataclass(frozen=True)
class OfSeeds:
    """Vectors by seed: those of fresh networks."""

    parts: Sequence[Learnable]

    def of(self, trial: Trial) -> tuple[Tensor, Tensor]:
        return self.parts[trial.seed].of(trial)


def _chosen(pieces: Iterator[tuple[range, Piece]], rows: Tensor) -> Iterator[tuple[list[int], Piece]]:
    """Of ascending rows, those in each piece."""
    for numbers, piece in pieces:
        first, last = np.searchsorted(rows.numpy(), [numbers.start, numbers.stop]).tolist()
        if first < last:
            yield (rows[first:last] - numbers.start).tolist(), piece


def _stacked(parts: list[Any]) -> Piece:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else sparse.vstack(parts, format="csr")


def _products(one: Any, other: Any) -> Tensor:
    """float64 [m, n]"""
    found = one @ other.T
    return found.double() if isinstance(found, Tensor) else torch.from_numpy(found.toarray()).double()


def _root(products: Tensor) -> tuple[Tensor, float]:
    """(L of products = L Lᵀ, the factor that brings the vectors, without their mean, to `ENERGY`)."""
    square = products.diagonal().mean()
    spread = (square - products.mean()).clamp(min=1e-6 * square, max=square) if square > 0 else torch.tensor(1.0)
    jitter = 1e-9 * square + 1e-30
    while (found := torch.linalg.cholesky_ex(products + jitter * torch.eye(len(products)).double())).info:
        jitter = 10 * jitter
    return found.L, float((ENERGY / spread).sqrt())


def vectors_of(train: Encoded, queries: Encoded, name: str, at: Tensor, asked: Tensor) -> Learnable:
    """The vectors of a contender that has a matrix. at, asked: as of `Spanned`."""
    known, judged = train.matrices[name], queries.matrices[name]
    if known.width > WIDE:
        return Spanned(known.pieces, judged.pieces, at, asked)
    return StandardisedLater(known, judged, at, asked)


def bag_vectors(train: Bags, queries: Bags, at: Tensor, asked: Tensor) -> Learnable:
    """The vectors of texts by n-grams."""
    return Spanned(partial(_values, train), partial(_values, queries), at, asked)


def _values(bags: Bags) -> Iterator[tuple[range, Piece]]:
    return ((numbers, piece.values) for numbers, piece in bags.pieces())
