"""Blind lines of reconstructions: what the best predictor has that is shown nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from bigssl import distributed


@torch.no_grad()
def mean_picture_error(pixels: Tensor) -> Tensor:
    """The squared error per pixel of the mean picture of the data, which of all that see nothing has the least.

    Estimated without bias from the global batch of n pictures: Σ (x − mean of the batch)² / (n − 1), the mean over
    pixels (the batch's own mean lies nearer to it than that of the data: by n/(n − 1)).

    Args:
        pixels: float [B, C, H, W] of this rank, n >= 2 over all ranks.

    Returns:
        [] float32, the same on every rank.
    """
    flat = pixels.flatten(1).double()
    count = flat.new_full((1,), len(flat))
    sums = distributed.all_reduce_sum(torch.cat([flat.sum(0), count]))
    mean, total = sums[:-1] / sums[-1], sums[-1]
    squares = distributed.all_reduce_sum((flat - mean).square().mean(1).sum())
    return (squares / (total - 1)).float()


@torch.no_grad()
def mean_row_error(rows: Tensor) -> Tensor:
    """The squared error per number of the mean row, estimated without bias: Σ (x − mean)² / (n − 1), the mean over
    numbers. As `mean_picture_error`, of ranks that may hold different numbers of rows.

    Args:
        rows: float [N, D] of this rank, n >= 2 over all ranks (of fewer it is 0).

    Returns:
        [] float32, the same on every rank.
    """
    own = rows.double()
    sums = distributed.all_reduce_sum(torch.cat([own.sum(0), own.new_full((1,), len(own))]))
    mean, total = sums[:-1] / sums[-1].clamp(min=1), sums[-1]
    squares = distributed.all_reduce_sum((own - mean).square().mean(1).sum())
    return (squares / (total - 1).clamp(min=1)).float()
