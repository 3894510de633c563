"""Rows of length one."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bigssl_kernels.checks import accumulator
from bigssl_kernels.dispatch import exact, refuse_double_backward

PIECE = 1 << 14  # rows made wide at a time, so that narrow embeddings are never copied whole in float32


def pieces(rows: int) -> Iterator[slice]:
    """Slices of at most PIECE rows."""
    return (slice(start, start + PIECE) for start in range(0, rows, PIECE))


def row_products(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left_i . right_i in `dtype`: [m]."""
    result = left.new_empty(left.shape[0], dtype=dtype)
    for piece in pieces(left.shape[0]):
        result[piece] = torch.linalg.vecdot(left[piece].to(dtype), right[piece].to(dtype))
    return result


@torch.library.custom_op("bigssl_kernels::unit_rows", mutates_args=())
@exact
def unit_rows_op(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[m, D] -> rows / |row| in `dtype`, and 1/|row| [m] in the accumulator's dtype, 0 for a row of zeros."""
    unit = rows.new_empty(rows.shape, dtype=dtype)
    inverse = rows.new_empty(rows.shape[0], dtype=accumulator(rows.dtype))
    for piece in pieces(rows.shape[0]):
        wide = rows[piece].to(inverse.dtype)
        norm = torch.linalg.vector_norm(wide, dim=1)
        inverse[piece] = norm.reciprocal().masked_fill_(norm == 0, 0.0)
        unit[piece] = wide * inverse[piece, None]
    return unit, inverse


@unit_rows_op.register_fake
def _(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape, dtype=dtype), rows.new_empty(rows.shape[0], dtype=accumulator(rows.dtype))


@torch.library.custom_op("bigssl_kernels::unit_rows_grad", mutates_args=())
@exact
def unit_rows_grad_op(upstream: Tensor, unit: Tensor, inverse: Tensor, dtype: torch.dtype) -> Tensor:
    """(g - z (z.g)) / |row|: only what is tangent to the sphere gets through."""
    grad = upstream.new_empty(upstream.shape, dtype=dtype)
    for piece in pieces(upstream.shape[0]):
        z, g = unit[piece].to(inverse.dtype), upstream[piece].to(inverse.dtype)
        radial = torch.linalg.vecdot(g, z)
        grad[piece] = torch.addcmul(g, z, radial[:, None], value=-1).mul_(inverse[piece, None])
    return grad


@unit_rows_grad_op.register_fake
def _(upstream: Tensor, unit: Tensor, inverse: Tensor, dtype: torch.dtype) -> Tensor:
    return upstream.new_empty(upstream.shape, dtype=dtype)


unit_rows_grad_op.register_autograd(refuse_double_backward)


def _setup(ctx, inputs, output) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output)


def _backward(ctx, upstream: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
    unit, inverse = ctx.saved_tensors
    return unit_rows_grad_op(upstream, unit, inverse, ctx.dtype), None


unit_rows_op.register_autograd(_backward, setup_context=_setup)


def prepare(rows: Tensor, normalize: bool, dtype: torch.dtype) -> Tensor:
    """Rows as the matrix products take them: contiguous, in `dtype`, of length one where asked.

    A row of zeros has no direction: it stays the zero vector and gets a zero gradient.
    """
    if normalize:
        return unit_rows_op(rows, dtype)[0]
    return rows.to(dtype).contiguous()
