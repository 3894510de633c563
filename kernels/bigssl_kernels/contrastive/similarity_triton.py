"""The similarity kernels on a GPU (or interpreted on the CPU with TRITON_INTERPRET=1)."""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bigssl_kernels import configs
from bigssl_kernels.configs import WIDE, Block, power_of_two
from bigssl_kernels.contrastive import triton_kernels

ROUNDS = 5


def precision(dtype: torch.dtype) -> str:
    """How float32 products are made: three tf32 products, or one where torch.set_float32_matmul_precision allows it."""
    if dtype != torch.float32 or torch.version.hip:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def splits(m: int, n: int, block: Block, blocks_out: int, device: torch.device) -> tuple[int, int]:
    """How many programs share a block of rows, and the columns each of them takes: enough to keep the card busy."""
    programs = -(-m // block.rows) * blocks_out
    columns = -(-n // block.cols)
    wanted = max(1, min(2 * _processors(device) // programs, columns // 4, 16))
    span = -(-columns // wanted) * block.cols
    return -(-n // span), span


def fitted(block: Block, features: int) -> tuple[int, bool]:
    """Features of a product at a time, and whether these are all (the rows' tile then stays on the chip)."""
    if features <= min(block.features, WIDE):
        return power_of_two(features), True
    return block.features, False


def _seconds(launch: Callable[[Block], Any]) -> Callable[[Block], float]:
    """Median time of a launch."""

    def time(block: Block) -> float:
        launch(block)
        spans = []
        for _ in range(ROUNDS):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            launch(block)
            stop.record()
            stop.synchronize()
            spans.append(start.elapsed_time(stop) / 1e3)
        return statistics.median(spans)

    return time


def reduce_rows(
    rows: Tensor, cols: Tensor, scale: Tensor, bias: Tensor | None, own: int | None, slope: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The three outputs of `reduce_kernel`, [splits, m] each ([0] where not wanted)."""
    m, features = rows.shape
    kinds = 2 if bias is not None else 1

    def launch(block: Block) -> tuple[Tensor, Tensor, Tensor]:
        count, span = splits(m, cols.shape[0], block, 1, rows.device)
        first = scale.new_empty(count, m)
        rest = [scale.new_empty((count, m) if slope and kind <= kinds else 0) for kind in (1, 2)]
        width, single = fitted(block, features)
        triton_kernels.reduce_kernel[(-(-m // block.rows), count)](
            rows, cols, scale, scale if bias is None else bias, first, rest[0], rest[1],
            m, cols.shape[0], features, own or 0, span,
            OWN=own is not None, SIGMOID=bias is not None, SLOPE=slope, PRECISION=precision(rows.dtype), SINGLE=single,
            BM=block.rows, BN=block.cols, BD=width, num_warps=block.warps, num_stages=block.stages,
        )  # fmt: skip
        return first, rest[0], rest[1]

    return launch(configs.choose("reduce", rows, _seconds(launch)))


def gradient(
    rows: Tensor,
    cols: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    own: int | None,
    row_lse: Tensor | None,
    row_weight: Tensor | None,
    col_lse: Tensor | None,
    col_weight: Tensor | None,
) -> Tensor:
    """Gradient by the rows, [m, D] float32."""
    m, features = rows.shape
    if not m or not cols.shape[0]:
        return scale.new_zeros(rows.shape)

    def launch(block: Block) -> Tensor:
        width, single = fitted(block, features)
        out = min(block.out, power_of_two(features))
        blocks_out = -(-features // out)
        count, span = splits(m, cols.shape[0], block, blocks_out, rows.device)
        grads = scale.new_empty(count, m, features)
        given = [scale if value is None else value for value in (bias, row_lse, row_weight, col_lse, col_weight)]
        triton_kernels.gradient_kernel[(-(-m // block.rows), count, blocks_out)](
            rows, cols, scale, *given, grads, m, cols.shape[0], features, own or 0, span,
            OWN=own is not None, SIGMOID=bias is not None, ROW=row_weight is not None, COL=col_weight is not None,
            PRECISION=precision(rows.dtype), SINGLE=single,
            BM=block.rows, BN=block.cols, BD=width, BO=out, num_warps=block.warps, num_stages=block.stages,
        )  # fmt: skip
        return grads[0] if count == 1 else grads.sum(0)

    return launch(configs.choose("gradient", rows, _seconds(launch)))


def forward(
    rows: Tensor, cols: Tensor | None, scale: Tensor, own: int | None, both: bool, slope: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `similarity.forward`."""
    others = rows if cols is None else cols
    lse, slopes = _logsumexp(rows, others, scale, own, slope)
    if not both:
        return lse, lse.new_empty(0), slopes, lse.new_empty(0)
    by_col, col_slopes = _logsumexp(others, rows, scale, None if own is None else -own, slope)
    return lse, by_col, slopes, col_slopes


def _logsumexp(rows: Tensor, cols: Tensor, scale: Tensor, own: int | None, slope: bool) -> tuple[Tensor, Tensor]:
    """Join the splits: logsumexps add as exponentials, slopes in proportion to them."""
    if not cols.shape[0]:
        return scale.new_full((rows.shape[0],), float("-inf")), scale.new_zeros(rows.shape[0] if slope else 0)
    parts, slopes, _ = reduce_rows(rows, cols, scale, None, own, slope)
    if parts.shape[0] == 1:
        return parts[0], slopes[0] if slope else slopes
    lse = parts.logsumexp(0)
    if not slope:
        return lse, slopes
    return lse, (torch.exp(parts - lse) * slopes).sum(0)


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
    """See `similarity.backward`."""
    none = scale.new_empty(0)
    if cols is None:
        return gradient(rows, rows, scale, None, own, row_lse, row_weight, row_lse, row_weight), none
    by_row, by_col = (row_lse, row_weight), (col_lse, col_weight)
    back = None if own is None else -own
    grad_rows = gradient(rows, cols, scale, None, own, *by_row, *by_col) if for_rows else none
    return grad_rows, gradient(cols, rows, scale, None, back, *by_col, *by_row) if for_cols else none.clone()
