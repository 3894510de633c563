"""The kernels of the sigmoid loss on a GPU (or interpreted on the CPU with TRITON_INTERPRET=1)."""

from torch import Tensor

from bigssl_kernels.contrastive.similarity_triton import gradient, reduce_rows


def forward(rows: Tensor, cols: Tensor, scale: Tensor, bias: Tensor, slope: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `_sigmoid_torch.forward`."""
    total, by_scale, by_bias = reduce_rows(rows, cols, scale, bias, None, slope)
    return (total.sum(0), by_scale.sum(0), by_bias.sum(0)) if slope else (total.sum(0), by_scale, by_bias)


def backward(
    rows: Tensor,
    cols: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_weight: Tensor | None,
    col_weight: Tensor | None,
    for_rows: bool,
    for_cols: bool,
) -> tuple[Tensor, Tensor]:
    """See `_sigmoid.sigmoid_backward`."""
    grads = []
    for wanted, sides, weights in (
        (for_rows, (rows, cols), (row_weight, col_weight)),
        (for_cols, (cols, rows), (col_weight, row_weight)),
    ):
        by_row, by_col = weights
        grads.append(gradient(*sides, scale, bias, None, None, by_row, None, by_col) if wanted else scale.new_empty(0))
    return grads[0], grads[1]
