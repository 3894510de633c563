"""Tiled similarity kernels in plain torch: any device, any dtype, never more than a tile of logits at a time.

Matrix products run in the dtype of the rows; everything else in float32 (float64 for float64 rows).

A sweep visits tiles of s = scale * rows @ cols.T, each once; a tile serves the sums or gradients of its rows and of its
columns alike. Rows against themselves need the tiles on and above the diagonal only. Logits are held in base two: exp2
costs a third of exp where MKL computes the latter. On a CPU a tile stays in the second-level cache, and where |s| < 41
exponentials need no shift: every e^s, every sum of them and every inverse is a normal float32. Elsewhere the logsumexp
takes the maximum out.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

CPU_TILE = (512, 512)
KEPT_BYTES = 31 << 20  # logits a forward on a CPU keeps for its backward; glibc maps blocks of 32 MiB afresh each time
DEVICE_TILE = (4096, 8192)
LOG2_E = 1 / math.log(2)
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


def room(rows: Tensor, cols: Tensor | None) -> int:
    """Elements of a `kept` for the logits of all tiles, or as many as it may have; float16 is not worth the care."""
    if rows.device.type != "cpu" or rows.dtype == torch.float16:
        return 0
    count, height = rows.shape[0], CPU_TILE[0]
    full, rest = count // height, count % height
    below = height * (height * (full * (full - 1) // 2) + full * rest)  # what `tiles` leaves out of a square
    wanted = count * cols.shape[0] if cols is not None else count * count - below
    return min(wanted, KEPT_BYTES // rows.element_size())


def tiles_to_keep(
    rows: Tensor, cols: Tensor | None, kept: Tensor | None
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """`tiles`, each with the part of `kept` that is its own, None for those that find no room."""
    start, room = 0, 0 if kept is None else len(kept)
    for piece, part in tiles(rows, cols):
        shape = (piece.stop - piece.start, part.stop - part.start)
        stop = start + shape[0] * shape[1]
        yield piece, part, kept[start:stop].view(shape) if kept is not None and stop <= room else None
        start = stop


def logits_of(rows: Tensor, cols: Tensor, factor: float | Tensor, out: Tensor | None = None) -> Tensor:
    """factor * rows @ cols.T; the factor never goes into narrow operands.

    As a number it multiplies the sums before they are rounded to the dtype of the rows, which is the result's. As a
    tensor it multiplies the rounded products (it would have to be read from its device), and the result has its dtype.
    """
    if isinstance(factor, float):
        out = rows.new_empty(rows.shape[0], cols.shape[0]) if out is None else out
        return out.addmm_(rows, cols.T, beta=0, alpha=factor)
    if rows.dtype == factor.dtype:
        return (rows * factor) @ cols.T
    return (rows @ cols.T).to(factor.dtype).mul_(factor)


def fill_own(tile: Tensor, piece: slice, part: slice, own: int | None, value: float) -> None:
    """Overwrite the entries at which a row meets its own column: row i's is column i + own."""
    offset = 0 if own is None else piece.start + own - part.start
    if own is not None and -tile.shape[0] < offset < tile.shape[1]:
        tile.diagonal(offset).fill_(value)


def needs_no_shift(rows: Tensor, cols: Tensor, scale: Tensor) -> bool:
    """Whether |s| is known to be small (Cauchy-Schwarz). Not asked of other devices: reading the answer stalls them."""
    if rows.device.type != "cpu" or not rows.shape[0] or not cols.shape[0]:
        return False
    longest = [torch.linalg.vector_norm(side, dim=1, dtype=scale.dtype).amax() for side in (rows, cols)]
    return bool(longest[0] * longest[1] * scale.abs() < UNSHIFTED)


def factor_of(rows: Tensor, scale: Tensor, unshifted: bool) -> float | Tensor:
    """What brings products to logits in base two. Unshifted logits are small enough for float16 in any case."""
    as_number = unshifted or (rows.device.type == "cpu" and rows.dtype != torch.float16)
    return float(scale) * LOG2_E if as_number else scale * LOG2_E


def powers_of(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """2^logits in `dtype`; the logits stay as they are."""
    return torch.exp2(logits) if logits.dtype == dtype else logits.to(dtype).exp2_()


class Sums:
    """Sums of 2^s over one side of s as they grow tile by tile, and their moments where a slope is wanted."""

    def __init__(self, count: int, scale: Tensor, slope: bool) -> None:
        self.scale, self.slope = scale, slope
        self.total = scale.new_zeros(count)
        self.moment = scale.new_zeros(count if slope else 0)
        self.top = scale.new_full((count,), float("-inf"))  # what was taken out of the exponents; unused unshifted

    def add(self, at: slice, powers: Tensor, weighted: Tensor | None, dim: int) -> None:
        """Add a tile's powers, and the same times the logits."""
        self.total[at] += powers.sum(dim)
        if weighted is not None:
            self.moment[at] += weighted.sum(dim)

    def add_shifted(self, at: slice, logits: Tensor, dim: int) -> None:
        """Add the powers of a tile's logits, of which -inf has none, taking the highest so far out of all exponents."""
        highest = torch.maximum(self.top[at], logits.amax(dim))
        base = highest.masked_fill(highest == float("-inf"), 0.0)
        shrink = (self.top[at] - base).exp2_()
        powers = (logits - base.unsqueeze(dim)).exp2_()
        self.total[at] = self.total[at] * shrink + powers.sum(dim)
        if self.slope:
            weighted = powers.mul_(logits.masked_fill(logits == float("-inf"), 0.0))
            self.moment[at] = self.moment[at] * shrink + weighted.sum(dim)
        self.top[at] = highest

    def results(self, unshifted: bool) -> tuple[Tensor, Tensor]:
        """Logsumexps, and means of rows_i . cols_j under the softmax (0 for a row without columns)."""
        lse = self.total.log2()
        if not unshifted:
            lse = torch.where(self.total == 0, self.top, self.top + lse)
        if not self.slope:
            return lse.div_(LOG2_E), self.moment
        mean = self.moment / (self.total * (self.scale * LOG2_E))
        return lse.div_(LOG2_E), mean.masked_fill_(self.total == 0, 0.0)


def forward(
    rows: Tensor, cols: Tensor | None, scale: Tensor, own: int | None, both: bool, slope: bool, kept: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `similarity.forward`."""
    others = rows if cols is None else cols
    unshifted = needs_no_shift(rows, others, scale)
    factor = factor_of(rows, scale, unshifted)
    by_row = Sums(rows.shape[0], scale, slope)
    by_col = by_row if cols is None else Sums(others.shape[0] if both else 0, scale, slope)
    for piece, part, home in tiles_to_keep(rows, cols, kept):
        sides = [(by_row, piece, 1)]
        if both if cols is not None else piece != part:
            sides.append((by_col, part, 0))
        logits = logits_of(rows[piece], others[part], factor, home)
        if unshifted:
            powers = powers_of(logits, scale.dtype)
            fill_own(powers, piece, part, own, 0.0)
            weighted = powers * logits if slope else None
            for sums, at, dim in sides:
                sums.add(at, powers, weighted, dim)
        else:
            logits = logits.to(scale.dtype)
            fill_own(logits, piece, part, own, float("-inf"))
            for sums, at, dim in sides:
                sums.add_shifted(at, logits, dim)
    lse, slopes = by_row.results(unshifted)
    if not both:
        return lse, lse.new_empty(0), slopes, lse.new_empty(0)
    col_lse, col_slopes = by_col.results(unshifted)
    return lse, col_lse, slopes, col_slopes


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
    kept: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `similarity.backward`."""
    others = rows if cols is None else cols
    grad_rows = scale.new_zeros(rows.shape if for_rows else 0)
    if cols is None:
        col_lse, col_weight, grad_cols, for_cols = row_lse, row_weight, grad_rows, True
    else:
        grad_cols = scale.new_zeros(cols.shape if for_cols else 0)
    unshifted = needs_no_shift(rows, others, scale)
    factor = factor_of(rows, scale, unshifted)
    row_factor, col_factor = (
        _factor(lse, weight, unshifted) for lse, weight in ((row_lse, row_weight), (col_lse, col_weight))
    )
    weigh = _weigh_unshifted if unshifted else _weigh_shifted
    for piece, part, home in tiles_to_keep(rows, cols, kept):
        logits = logits_of(rows[piece], others[part], factor) if home is None else home
        weights = rows.new_empty(logits.shape)
        weigh(weights, logits, _take(row_factor, (piece, None)), _take(col_factor, (None, part)), scale.dtype)
        fill_own(weights, piece, part, own, 0.0)
        if for_rows:
            accumulate(grad_rows[piece], weights, others[part])
        if for_cols and (cols is not None or piece != part):
            accumulate(grad_cols[part], weights.T, rows[piece])
    grad_rows.mul_(scale)
    return grad_rows, scale.new_empty(0) if cols is None else grad_cols.mul_(scale)


Factor = tuple[Tensor, Tensor] | None  # logsumexps and weights of one side, or None where that side has no loss


def _factor(lse: Tensor | None, weight: Tensor | None, unshifted: bool) -> Factor:
    """What one side contributes, in base two; without a shift, weight * 2^-lse alone (a side's logsumexp is then
    finite)."""
    if lse is None or weight is None:
        return None
    lse = lse * LOG2_E
    return (lse, weight * torch.exp2(-lse).masked_fill_(lse == float("-inf"), 0.0)) if unshifted else (lse, weight)


def _take(factor: Factor, index: tuple[slice | None, slice | None]) -> Factor:
    return None if factor is None else (factor[0][index], factor[1][index])


def _weigh_unshifted(out: Tensor, logits: Tensor, row: Factor, col: Factor, dtype: torch.dtype) -> None:
    """2^s (row_i + col_j): one exponential serves both sides, and the product is rounded as it is written."""
    factors = [side[1] for side in (row, col) if side is not None]
    if not factors:
        out.zero_()
    else:
        torch.mul(powers_of(logits, dtype), sum(factors[1:], factors[0]), out=out)


def _weigh_shifted(out: Tensor, logits: Tensor, row: Factor, col: Factor, dtype: torch.dtype) -> None:
    """weight_i 2^(s - lse_i) + weight_j 2^(s - lse_j): no factor overflows, whatever the scale."""
    terms = [(logits.to(dtype) - side[0]).exp2_().mul_(side[1]) for side in (row, col) if side is not None]
    out.copy_(sum(terms[1:], terms[0]) if terms else torch.zeros((), dtype=dtype, device=out.device))


def accumulate(target: Tensor, left: Tensor, right: Tensor) -> None:
    """target += left @ right, summed in the dtype of the target."""
    if left.dtype == target.dtype:
        target.addmm_(left, right)
    else:
        target += left @ right
