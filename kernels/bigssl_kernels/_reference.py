"""The slow truth: every loss in a few obvious lines of dense torch. All other implementations are tested against it.

Everything is computed in float32 (float64 for float64 inputs), whatever autocast says, with the whole matrix of logits.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from bigssl_kernels._checks import accumulator
from bigssl_kernels._distributed import gather_rows, rank


def exact(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Shut autocast out of `loss`."""

    @functools.wraps(loss)
    def run(first: Tensor, *args: Any) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):
            return loss(first, *args)

    return run


def unit(rows: Tensor, normalize: bool) -> Tensor:
    """Rows of length one (a row of zeros stays zero and gets no gradient), in the accumulator's dtype."""
    rows = rows.to(accumulator(rows.dtype))
    if not normalize:
        return rows
    norm = rows.norm(dim=1, keepdim=True)
    return rows * (norm > 0) / norm.masked_fill(norm == 0, 1.0)


def own_rows(rows: Tensor, local: int, group: ProcessGroup | None) -> Tensor:
    """Of the rows of all ranks, this rank's `local` ones."""
    return rows[rank(group) * local : (rank(group) + 1) * local]


@exact
def nt_xent(view1: Tensor, view2: Tensor, scale: Tensor, normalize: bool, group: ProcessGroup | None) -> Tensor:
    """[N, D] x 2 -> losses of this rank's 2N rows, view1's first (Chen et al. 2020)."""
    count = view1.shape[0]
    z1, z2 = (gather_rows(unit(view, normalize), group) for view in (view1, view2))
    z = torch.cat([z1, z2])  # [M, D], all ranks' view1, then all ranks' view2
    logits = (z @ z.T * scale).fill_diagonal_(float("-inf"))
    partner = torch.arange(len(z), device=z.device).roll(len(z1))
    losses1, losses2 = F.cross_entropy(logits, partner, reduction="none").split(len(z1))
    return torch.cat([own_rows(losses1, count, group), own_rows(losses2, count, group)])


@exact
def clip_loss(image: Tensor, text: Tensor, scale: Tensor, normalize: bool, group: ProcessGroup | None) -> Tensor:
    """[N, D] x 2 -> mean of both directions' losses for this rank's N pairs (Radford et al. 2021)."""
    images, texts = (gather_rows(unit(tower, normalize), group) for tower in (image, text))
    logits = images @ texts.T * scale  # [M, M]
    diagonal = torch.arange(len(images), device=image.device)
    by_image = F.cross_entropy(logits, diagonal, reduction="none")
    by_text = F.cross_entropy(logits.T, diagonal, reduction="none")
    return own_rows((by_image + by_text) / 2, len(image), group)


@exact
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> Tensor:
    """hidden [T, H], weight [V, H], labels [T] -> losses [T], 0 where the label is `ignore_index`."""
    dtype = accumulator(hidden.dtype)
    logits = F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))  # [T, V]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = F.cross_entropy(
        logits, labels.long(), ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )
    return losses + (z_loss * logits.logsumexp(1).square()).masked_fill(labels == ignore_index, 0.0)
