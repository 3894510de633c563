"""How a matrix is taken in pieces, and the memory that holds a piece of the logits."""

from collections.abc import Iterator

from torch import Tensor

ALIGNED = 64  # rows of logits begin at multiples of these: float32 products are 1.4 times as fast as elsewhere
NARROWEST = 128


def room_for(x: Tensor, rows: int, columns: int) -> Tensor:
    """Uninitialised [rows, columns] in aligned rows, with 0 between them: products of bfloat16 on AMX read an odd last
    column with the number behind it, times 0, which is NaN where that is."""
    whole = x.new_empty(rows, -(-columns // ALIGNED) * ALIGNED)
    whole[:, columns:] = 0
    return whole[:, :columns]


def slices(length: int, longest: int) -> Iterator[slice]:
    """Slices of nearly equal length, none longer than `longest`."""
    count = -(-length // max(longest, 1))
    width = -(-length // max(count, 1))
    return (slice(start, min(start + width, length)) for start in range(0, length, max(width, 1)))


def casts(weight: Tensor) -> Iterator[slice]:
    """Rows of the weight that are cast at a time."""
    return slices(weight.shape[0], max(NARROWEST, (1 << 21) // max(weight.shape[1], 1)))
