"""Second moments over the global batch with exact gradients, in the convention of `bigssl.distributed`: statistics of a
rank's own samples would be another loss on two ranks. float32, also under autocast. Each rank holds as many rows as the
others."""

from __future__ import annotations

from torch import Tensor

from bigssl import distributed
from bigssl_kernels.dispatch import exact


@exact
def centred(z: Tensor) -> Tensor:
    """[B, D] any float dtype -> float32 [B, D] less the mean of all ranks' rows."""
    rows = z.float()
    return rows - distributed.sum_over_ranks(rows.sum(0)) / rows_everywhere(rows)


def rows_everywhere(rows: Tensor) -> int:
    """Of all ranks."""
    return len(rows) * distributed.world()


@exact
def column_products(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of M = aᵀ b over all ranks' rows: its diagonal [D], and the sum of squares of everything beside it, [].

    Through the smaller matrix: M, or where there are fewer rows than columns the products of rows, since
    ‖aᵀ b‖² = Σ_kl (a aᵀ)_kl (b bᵀ)_kl. An expander of 8,192 numbers on 2,048 samples then makes a sixteenth of the
    numbers, and ranks exchange rows, not M.

    Args:
        a, b: float32 [B, D].
    """
    diagonal = distributed.sum_over_ranks((a * b).sum(0))
    if a.shape[1] <= rows_everywhere(a):
        squares = distributed.sum_over_ranks(a.T @ b).square().sum()
    else:
        ours = (a @ distributed.rows_of_all(a).T) * (b @ distributed.rows_of_all(b).T)
        squares = distributed.sum_over_ranks(ours.sum())
    return diagonal, squares - diagonal.square().sum()
