"""Two kernels from which every softmax loss of the family is built.

With s_ij = scale * rows_i . cols_j, `logsumexp` reduces each row of s, and `gradient` differentiates any loss that is a
weighted sum of logsumexps over the rows and over the columns of s. Neither holds s.
"""

import torch
from torch import Tensor

from bigssl_kernels._dispatch import module, refuse_double_backward

HALF_RANGE = 1024.0  # float16 keeps weights of 1e-7 of the largest when the largest is this


def logsumexp(
    rows: Tensor, cols: Tensor, scale: Tensor, own: int | None, slope: bool, impl: str
) -> tuple[Tensor, Tensor]:
    """log sum_j exp(s_ij) for each row, and its derivative by the scale.

    Args:
        rows: [m, D], contiguous.
        cols: [n, D], contiguous, same dtype.
        scale: [], float32 (float64 for float64 rows).
        own: row i leaves out column i + own; None leaves out none.
        slope: whether the derivative is wanted.

    Returns:
        lse [m] and sum_j p_ij rows_i . cols_j [m] ([0] where not wanted), in the dtype of the scale.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return module("similarity", impl).logsumexp(rows, cols, scale, own, slope)


@torch.library.custom_op("bigssl_kernels::similarity_gradient", mutates_args=())
def gradient_op(
    rows: Tensor,
    cols: Tensor,
    scale: Tensor,
    own: int | None,
    row_lse: Tensor | None,
    row_weight: Tensor | None,
    col_lse: Tensor | None,
    col_weight: Tensor | None,
    impl: str,
) -> Tensor:
    """scale * sum_j (row_weight_i exp(s_ij - row_lse_i) + col_weight_j exp(s_ij - col_lse_j)) cols_j: [m, D].

    Either pair of lse and weight may be absent. The result is in the dtype of the scale.
    """
    arguments = [row_lse, row_weight, col_lse, col_weight]
    peak = None
    if rows.dtype == torch.float16:
        arguments, peak = _within_half_range(*arguments)
    grad: Tensor = module("similarity", impl).gradient(rows, cols, scale, own, *arguments)
    return grad if peak is None else grad.mul_(peak)


def _within_half_range(
    row_lse: Tensor | None, row_weight: Tensor | None, col_lse: Tensor | None, col_weight: Tensor | None
) -> tuple[list[Tensor | None], Tensor]:
    """Weights scaled so that the products of float16 neither vanish nor overflow, and the factor taken out."""
    tops = [weight.abs().amax() for weight in (row_weight, col_weight) if weight is not None]
    peak = torch.stack(tops).amax().clamp_min(torch.finfo(torch.float32).tiny) / HALF_RANGE
    row_weight, col_weight = (None if weight is None else weight / peak for weight in (row_weight, col_weight))
    return [row_lse, row_weight, col_lse, col_weight], peak


@gradient_op.register_fake
def _(
    rows: Tensor,
    cols: Tensor,
    scale: Tensor,
    own: int | None,
    row_lse: Tensor | None,
    row_weight: Tensor | None,
    col_lse: Tensor | None,
    col_weight: Tensor | None,
    impl: str,
) -> Tensor:
    return rows.new_empty(rows.shape, dtype=scale.dtype)


gradient_op.register_autograd(refuse_double_backward)
