"""Tiled kernels of the sigmoid loss in plain torch: any device, any dtype."""

import torch.nn.functional as F
from torch import Tensor

from bigssl_kernels.contrastive.similarity_torch import accumulate, logits_of, tiles


def forward(rows: Tensor, cols: Tensor, scale: Tensor, bias: Tensor, slope: bool) -> tuple[Tensor, Tensor, Tensor]:
    """sum_j softplus(l_ij) of each row and its derivatives by scale and bias ([0] where not wanted): [m] each."""
    total, by_scale, by_bias = scale.new_zeros(3, rows.shape[0]).unbind()
    for piece, part in tiles(rows, cols):
        scaled = logits_of(rows[piece], cols[part], scale)
        total[piece] += F.softplus(scaled + bias, threshold=40.0).sum(1)
        if slope:
            share = (scaled + bias).sigmoid_()
            by_bias[piece] += share.sum(1)
            by_scale[piece] += share.mul_(scaled).sum(1) / scale
    none = total.new_empty(0)
    return (total, by_scale, by_bias) if slope else (total.clone(), none, none.clone())


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
    grad_rows = scale.new_zeros(rows.shape if for_rows else 0)
    grad_cols = scale.new_zeros(cols.shape if for_cols else 0)
    for piece, part in tiles(rows, cols):
        share = logits_of(rows[piece], cols[part], scale).add_(bias).sigmoid_()
        weight = 0.0 if row_weight is None else row_weight[piece, None]
        weight = weight if col_weight is None else weight + col_weight[part]
        share = (share * weight).to(rows.dtype)
        if for_rows:
            accumulate(grad_rows[piece], share, cols[part])
        if for_cols:
            accumulate(grad_cols[part], share.T, rows[piece])
    return grad_rows.mul_(scale), grad_cols.mul_(scale)
