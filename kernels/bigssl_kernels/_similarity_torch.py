"""Chunked similarity kernels in plain torch: any device, any dtype, never more than a panel of logits at a time.

Matrix products run in the dtype of the rows; everything else in float32 (float64 for float64 rows).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bigssl_kernels._checks import accumulator

CHUNK = 256  # rows of a panel


def chunks(total: int, size: int = CHUNK) -> Iterator[slice]:
    """Consecutive slices that cover range(total)."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _own(panel: Tensor, piece: slice, own: int) -> Tensor:
    """The entries of a panel at which a row meets its own column: row i's is i + own. A view, to be overwritten."""
    return panel[:, piece.start + own : piece.stop + own].diagonal()


def logsumexp(rows: Tensor, cols: Tensor, scale: Tensor, own: int | None, slope: bool) -> tuple[Tensor, Tensor]:
    """See `_similarity.logsumexp`."""
    lse = rows.new_empty(rows.shape[0], dtype=accumulator(rows.dtype))
    slopes = torch.empty_like(lse) if slope else lse.new_empty(0)
    for piece in chunks(rows.shape[0]):
        sims = (rows[piece] @ cols.T).to(lse.dtype)  # [c, n]
        logits = sims * scale if slope else sims.mul_(scale)
        if own is not None:
            _own(logits, piece, own).fill_(float("-inf"))
        top = logits.amax(1, keepdim=True)
        top.masked_fill_(top == float("-inf"), 0.0)  # no column left: exp(-inf - 0) sums to nothing
        weights = logits.sub_(top).exp_()
        total = weights.sum(1)
        lse[piece] = total.log().add_(top.squeeze(1))
        if slope:
            slopes[piece] = torch.linalg.vecdot(weights, sims).div_(total)
    return lse, slopes.nan_to_num_(0.0) if own is not None and cols.shape[0] == 1 else slopes


def gradient(
    rows: Tensor,
    cols: Tensor,
    scale: Tensor,
    own: int | None,
    row_lse: Tensor | None,
    row_weight: Tensor | None,
    col_lse: Tensor | None,
    col_weight: Tensor | None,
) -> Tensor:
    """See `_similarity.gradient`."""
    grad = rows.new_empty(rows.shape, dtype=accumulator(rows.dtype))
    for piece in chunks(rows.shape[0]):
        logits = (rows[piece] @ cols.T).to(grad.dtype).mul_(scale)  # [c, n]
        weights: Tensor | None = None
        if row_lse is not None and row_weight is not None:
            weights = (logits - row_lse[piece, None]).exp_().mul_(row_weight[piece, None])
        if col_lse is not None and col_weight is not None:
            by_column = logits.sub_(col_lse).exp_().mul_(col_weight)
            weights = by_column if weights is None else weights.add_(by_column)
        if weights is None:
            return grad.zero_()
        if own is not None:
            _own(weights, piece, own).zero_()
        grad[piece] = weights.to(cols.dtype) @ cols
    return grad.mul_(scale)
