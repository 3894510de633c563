"""Two kernels from which every softmax loss of the family is built.

With s_ij = scale * rows_i . cols_j, `forward` reduces each row (and each column) of s to its logsumexp, and `backward`
differentiates any loss that is a weighted sum of those logsumexps. Neither holds s.
"""

import torch
from torch import Tensor

from bigssl_kernels.contrastive import similarity_torch
from bigssl_kernels.dispatch import module, refuse_double_backward

HALF_RANGE = 1024.0  # float16 keeps weights of 1e-7 of the largest when the largest is this


def room(rows: Tensor, cols: Tensor | None, group: str, impl: str) -> int:
    """Elements of logits that the forward of one process keeps for its backward; 0 where there will be none."""
    if impl != "torch" or group or not (rows.requires_grad or (cols is not None and cols.requires_grad)):
        return 0
    return similarity_torch.room(rows, cols)


def forward(
    rows: Tensor,
    cols: Tensor | None,
    scale: Tensor,
    own: int | None,
    both: bool,
    slope: bool,
    impl: str,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log sum_j exp(s_ij) of each row, log sum_i exp(s_ij) of each column, and their derivatives by the scale.

    Args:
        rows: [m, D], contiguous.
        cols: [n, D], contiguous, same dtype; None stands for the rows themselves.
        scale: [], float32 (float64 for float64 rows).
        own: row i leaves out column i + own; None leaves out none.
        both: whether the columns are wanted too (pointless for rows against themselves).
        slope: whether the derivatives are wanted.
        kept: [`room`], where logits are left for the backward, which reads them instead of making them again: with the
            same results to the bit. The Triton kernels always make them again.

    Returns:
        Logsumexps of the rows [m] and of the columns [n], derivatives of both: sum_j p_ij rows_i . cols_j. In the dtype
        of the scale; [0] where not wanted.
    """
    room = (kept,) if impl == "torch" else ()
    return module("similarity", impl).forward(rows, cols, scale, own, both, slope, *room)


@torch.library.custom_op("bigssl_kernels::similarity_backward", mutates_args=())
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
    impl: str,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of sum_i row_weight_i row_lse_i + sum_j col_weight_j col_lse_j by rows and cols.

    That is scale * sum_j (row_weight_i exp(s_ij - row_lse_i) + col_weight_j exp(s_ij - col_lse_j)) cols_j for the rows
    and its mirror image for the columns. Either pair of lse and weight may be absent. With `cols` None both roles are
    played by the rows, the column pair is that of the rows, and the first result is the whole gradient.

    Returns:
        [m, D] and [n, D] in the dtype of the scale; [0] where not wanted.
    """
    arguments = [row_lse, row_weight, col_lse, col_weight]
    peak = None
    if rows.dtype == torch.float16:
        arguments, peak = within_half_range(*arguments)
    room = (kept,) if impl == "torch" else ()
    grads: tuple[Tensor, Tensor] = module("similarity", impl).backward(
        rows, cols, scale, own, *arguments, for_rows, for_cols, *room
    )
    return grads if peak is None else (grads[0].mul_(peak), grads[1].mul_(peak))


def within_half_range(
    row_lse: Tensor | None, row_weight: Tensor | None, col_lse: Tensor | None, col_weight: Tensor | None
) -> tuple[list[Tensor | None], Tensor]:
    """Weights scaled so that the products of float16 neither vanish nor overflow, and the factor taken out."""
    tops = [weight.abs().amax() for weight in (row_weight, col_weight) if weight is not None]
    peak = torch.stack(tops).amax().clamp_min(torch.finfo(torch.float32).tiny) / HALF_RANGE
    row_weight, col_weight = (None if weight is None else weight / peak for weight in (row_weight, col_weight))
    return [row_lse, row_weight, col_lse, col_weight], peak


@backward.register_fake
def _(
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
    impl: str,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    grad_cols = scale.new_empty(cols.shape if for_cols and cols is not None else 0)
    return scale.new_empty(rows.shape if for_rows else 0), grad_cols


backward.register_autograd(refuse_double_backward)
