"""Vectors of which cosines are taken, each without the mean of a bank: of a matrix of features here, of texts in
`bigssl.transfer.bags`. Both come in pieces, and neither need fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bigssl.transfer.matrix import Matrix

SMALLEST = 1e-12  # length that is divided by at least
STRIP, ASKING = 2048, 1024  # rows of a bank, of queries: a product of 8 MiB stays near the cores that look through it


class VectorPiece(Protocol):
    """Some rows. blank: bool [m], those that point nowhere: all others are equally far from them."""

    @property
    def blank(self) -> Tensor: ...

    def cosines(self, other: Any) -> Tensor:
        """float32 [m, n], with the rows of another piece of the same kind; 0 with blank ones."""
        ...

    def __getitem__(self, rows: list[int]) -> VectorPiece: ...

    def strips(self, rows: int = STRIP) -> Iterator[VectorPiece]:
        """The same rows in parts of a size (`rows`, if they are dense) for which cosines are fast."""
        ...


class Vectors(Protocol):
    def __len__(self) -> int: ...

    def pieces(self, rows: range | None = None) -> Iterator[tuple[range, VectorPiece]]:
        """(row numbers, these rows), of all or of contiguous `rows`, in order."""
        ...


def unit(features: Tensor) -> Tensor:
    """Vectors [N, D] at length 1, float32; rows of zeros stay."""
    return _scaled(features.to(torch.float32, copy=True))


def _scaled(rows: Tensor) -> Tensor:
    """In place: for a large bank, memory anew costs ten times the arithmetic."""
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=SMALLEST))


@dataclass(frozen=True)
class DenseRows:
    """directions: float32 [m, D], of unit length or zero."""

    directions: Tensor

    @property
    def blank(self) -> Tensor:
        return ~self.directions.any(dim=1).cpu()

    def cosines(self, other: DenseRows) -> Tensor:
        if self.directions.device.type == "cpu":  # numpy's BLAS is a tenth faster than torch's on many processors
            return torch.from_numpy(self.directions.numpy() @ other.directions.numpy().T)
        return self.directions @ other.directions.T

    def __getitem__(self, rows: list[int]) -> DenseRows:
        return DenseRows(self.directions[rows])

    def strips(self, rows: int = STRIP) -> Iterator[DenseRows]:
        rows = rows if self.directions.device.type == "cpu" else len(self.directions)
        return map(DenseRows, self.directions.split(rows))


@dataclass(frozen=True)
class Centred:
    """A matrix [N, D] without the `mean` [D], computed on `device`."""

    matrix: Matrix
    mean: Tensor
    device: str | torch.device = "cpu"

    def __len__(self) -> int:
        return len(self.matrix)

    def pieces(self, rows: range | None = None) -> Iterator[tuple[range, DenseRows]]:
        for numbers, piece in self.matrix.pieces(rows):
            yield numbers, DenseRows(_scaled(piece - self.mean).to(self.device))
