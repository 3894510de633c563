"""What linear cross-entropy is made of, whichever implementation computes it.

A token's loss is lse - (1 - s) target - s / V total + z lse^2, where lse is the logsumexp of its logits, target the
logit of its label, total the sum of its logits, s the label smoothing and z the z-loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Options(NamedTuple):
    """What a loss is asked for; `classes` is V, of all ranks where the vocabulary is sharded."""

    classes: int
    label_smoothing: float
    z_loss: float
    softcap: float | None
    dtype: torch.dtype  # of matrix products


class Statistics(NamedTuple):
    """Of each token's logits, [T] in the accumulator's dtype; undefined where the label is ignored.

    `target` is NaN where the label lies outside the vocabulary. `top` (the first class of the largest logit) and
    `moment` (sum of probability x logit) are [0] unless details are wanted.
    """

    lse: Tensor
    target: Tensor
    total: Tensor
    top: Tensor
    moment: Tensor


class Wanted(NamedTuple):
    """Whose gradients are computed."""

    hidden: bool
    weight: bool
    bias: bool


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # by hidden, weight, bias: None where not wanted


def losses(stats: Statistics, options: Options) -> Tensor:
    """Losses [T]."""
    rows = stats.lse - (1 - options.label_smoothing) * stats.target
    if options.label_smoothing:
        rows -= options.label_smoothing / options.classes * stats.total
    return rows + options.z_loss * stats.lse.square() if options.z_loss else rows


def slopes(upstream: Tensor, lse: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of sum_t upstream_t loss_t by lse, target and total: [T] each."""
    return (
        upstream * (1 + 2 * options.z_loss * lse),
        upstream * (options.label_smoothing - 1),
        upstream * (-options.label_smoothing / options.classes),
    )
