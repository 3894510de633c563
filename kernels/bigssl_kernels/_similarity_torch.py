"""Tiled similarity kernels in plain torch: any device, any dtype, never more than a tile of logits at a time.

Matrix products run in the dtype of the rows; everything else in float32 (float64 for float64 rows).

A sweep visits tiles of s = scale * rows @ cols.T, each once; a tile serves the sums or gradients of its rows and of its
columns alike. Rows against themselves need the tiles on and above the diagonal only. On a CPU a tile stays in the
second-level cache, and where |s| < 41 exponentials need no shift: every e^s, every sum of them and every inverse is a
normal float32. Elsewhere the logsumexp takes the maximum out.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

CPU_TILE = (256, 1024)
DEVICE_TILE = (4096, 8192)
UNSHIFTED = 60 * math.log(2)  # |s| below this keeps e^s within 2^-60 .. 2^60


def chunks(start: int, stop: int, size: int) -> Iterator[slice]:
    """Consecutive slices that cover range(start, stop)."""
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def tiles(rows: Tensor, cols: Tensor | None) -> Iterator[tuple[slice, slice]]:
    """Pairs of slices that cover s; with `cols` None its diagonal blocks and what lies right of them."""
    height, width = CPU_TILE if rows.device.type == "cpu" else DEVICE_TILE
    for piece in chunks(0, rows.shape[0], height):
        if cols is None:
            yield piece, piece
        for part in chunks(0 if cols is not None else piece.stop, len(rows if cols is None else cols), width):
            yield piece, part


def logits_of(rows: Tensor, cols: Tensor, scale: Tensor) -> Tensor:
    """A tile of s in the accumulator's dtype; the scale never goes into narrow operands."""
    if rows.dtype == scale.dtype:
        return (rows * scale) @ cols.T
    return (rows @ cols.T).to(scale.dtype).mul_(scale)


def fill_own(tile: Tensor, piece: slice, part: slice, own: int | None, value: float) -> None:
    """Overwrite the entries at which a row meets its own column: row i's is column i + own."""
    offset = 0 if own is None else piece.start + own - part.start
    if own is not None and -tile.shape[0] < offset < tile.shape[1]:
        tile.diagonal(offset).fill_(value)


def needs_no_shift(rows: Tensor, cols: Tensor, scale: Tensor) -> bool:
    """Whether |s| is known to be small (Cauchy-Schwarz). Not asked of other devices: reading the answer stalls them."""
    if rows.device.type != "cpu":
        return False
    longest = [torch.linalg.vector_norm(side, dim=1, dtype=scale.dtype).amax() for side in (rows, cols)]
    return bool(longest[0] * longest[1] * scale.abs() < UNSHIFTED)


def forward(
    rows: Tensor, cols: Tensor | None, scale: Tensor, own: int | None, both: bool, slope: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `_similarity.forward`."""
    others = rows if cols is None else cols
    if rows.shape[0] and others.shape[0] and needs_no_shift(rows, others, scale):
        return _forward_unshifted(rows, cols, scale, own, both, slope)
    lse, slopes = _forward_shifted(rows, others, scale, own, slope)
    none = lse.new_empty(0)
    if not both:
        return lse, none, slopes, none.clone()
    by_col, col_slopes = _forward_shifted(others, rows, scale, None if own is None else -own, slope)
    return lse, by_col, slopes, col_slopes


def _forward_unshifted(
    rows: Tensor, cols: Tensor | None, scale: Tensor, own: int | None, both: bool, slope: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    others = rows if cols is None else cols
    total, moment = (scale.new_zeros(2, rows.shape[0])).unbind()
    col_total, col_moment = (total, moment) if cols is None else scale.new_zeros(2, others.shape[0]).unbind()
    for piece, part in tiles(rows, cols):
        logits = logits_of(rows[piece], others[part], scale)
        powers = logits.exp() if slope else logits.exp_()
        fill_own(powers, piece, part, own, 0.0)
        total[piece] += powers.sum(1)
        through = both if cols is not None else piece != part
        if through:
            col_total[part] += powers.sum(0)
        if slope:
            weighted = powers.mul_(logits)
            moment[piece] += weighted.sum(1)
            if through:
                col_moment[part] += weighted.sum(0)
    none = total.new_empty(0)
    slopes = _slopes(moment, total, scale) if slope else none
    if not both:
        return total.log(), none.clone(), slopes, none.clone()
    return total.log(), col_total.log(), slopes, _slopes(col_moment, col_total, scale) if slope else none.clone()


def _slopes(moment: Tensor, total: Tensor, scale: Tensor) -> Tensor:
    """Means of rows_i . cols_j under the softmax; 0 for a row without columns."""
    return (moment / (total * scale)).masked_fill(total == 0, 0.0)


def _forward_shifted(rows: Tensor, cols: Tensor, scale: Tensor, own: int | None, slope: bool) -> tuple[Tensor, Tensor]:
    """Online maximum, sum and moment over the tiles of each block of rows."""
    top = scale.new_full((rows.shape[0],), float("-inf"))
    total, moment = scale.new_zeros(2, rows.shape[0]).unbind()
    for piece, part in tiles(rows, cols):
        logits = logits_of(rows[piece], cols[part], scale)
        fill_own(logits, piece, part, own, float("-inf"))
        highest = torch.maximum(top[piece], logits.amax(1))
        base = highest.masked_fill(highest == float("-inf"), 0.0)
        shrink = (top[piece] - base).exp_()
        powers = (logits - base[:, None]).exp_()
        total[piece] = total[piece] * shrink + powers.sum(1)
        if slope:
            fill_own(logits, piece, part, own, 0.0)
            moment[piece] = moment[piece] * shrink + powers.mul_(logits).sum(1)
        top[piece] = highest
    return torch.where(total == 0, top, top + total.log()), _slopes(moment, total, scale) if slope else top.new_empty(0)


def backward(
    rows: Tensor,
    cols: Tensor | None,
    scale: Tensor,
    own: int | None,
    row_lse: Tensor | None,
    row_weight: Tensor | None,
    col_lse: Tensor | None,
    col_weight: Tensor | None,
    for_rows: bool,
    for_cols: bool,
) -> tuple[Tensor, Tensor]:
    """See `_similarity.backward`."""
    others = rows if cols is None else cols
    grad_rows = scale.new_zeros(rows.shape) if for_rows else scale.new_empty(0)
    if cols is None:
        col_lse, col_weight, grad_cols, for_cols = row_lse, row_weight, grad_rows, True
    else:
        grad_cols = scale.new_zeros(cols.shape) if for_cols else scale.new_empty(0)
    if not rows.shape[0] or not others.shape[0]:
        return grad_rows, scale.new_empty(0) if cols is None else grad_cols
    weigh = _weigh_unshifted if needs_no_shift(rows, others, scale) else _weigh_shifted
    row_factor, col_factor = (
        _factor(lse, weight, weigh is _weigh_unshifted)
        for lse, weight in ((row_lse, row_weight), (col_lse, col_weight))
    )
    for piece, part in tiles(rows, cols):
        logits = logits_of(rows[piece], others[part], scale)
        weights = weigh(logits, _take(row_factor, (piece, None)), _take(col_factor, (None, part)))
        fill_own(weights, piece, part, own, 0.0)
        weights = weights.to(rows.dtype)
        if for_rows:
            accumulate(grad_rows[piece], weights, others[part])
        if for_cols and (cols is not None or piece != part):
            accumulate(grad_cols[part], weights.T, rows[piece])
    grad_rows.mul_(scale)
    return grad_rows, scale.new_empty(0) if cols is None else grad_cols.mul_(scale)


Factor = tuple[Tensor, Tensor] | None  # logsumexps and weights of one side, or None where that side has no loss


def _factor(lse: Tensor | None, weight: Tensor | None, unshifted: bool) -> Factor:
    """What one side contributes; without a shift, weight * exp(-lse) alone (a side's logsumexp is then finite)."""
    if lse is None or weight is None:
        return None
    return (lse, weight * torch.exp(-lse).masked_fill_(lse == float("-inf"), 0.0)) if unshifted else (lse, weight)


def _take(factor: Factor, index: tuple[slice | None, slice | None]) -> Factor:
    return None if factor is None else (factor[0][index], factor[1][index])


def _weigh_unshifted(logits: Tensor, row: Factor, col: Factor) -> Tensor:
    """exp(s) (row_i + col_j): one exponential serves both sides."""
    powers = logits.exp_()
    if row is not None and col is not None:
        return powers.mul_(row[1] + col[1])
    side = row if row is not None else col
    return powers.zero_() if side is None else powers.mul_(side[1])


def _weigh_shifted(logits: Tensor, row: Factor, col: Factor) -> Tensor:
    """weight_i exp(s - lse_i) + weight_j exp(s - lse_j): no factor overflows, whatever the scale."""
    terms = [(logits - lse).exp_().mul_(weight) for lse, weight in (side for side in (row, col) if side is not None)]
    if not terms:
        return logits.zero_()
    return terms[0] if len(terms) == 1 else terms[0].add_(terms[1])


def accumulate(target: Tensor, left: Tensor, right: Tensor) -> None:
    """target += left @ right, summed in the dtype of the target."""
    if left.dtype == target.dtype:
        target.addmm_(left, right)
    else:
        target += left @ right
