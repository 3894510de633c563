"""What linear cross-entropy is made of, whichever implementation computes it.

A token's loss is lse - (1 - s) target - s / V total + z lse^2, where lse is the logsumexp of its logits, target the
logit of its label, total the sum of its logits, s the label smoothing and z the z-loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Options(NamedTuple):
    """What a loss is asked for: one record for every operator and implementation, flat in the operators' schemas."""

    classes: int  # V, of all ranks where the vocabulary is sharded
    first: int  # class of the weight's first row
    group: str  # the ranks that share the vocabulary, "" for none
    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float | None
    dtype: torch.dtype  # of matrix products
    impl: str


class Wanted(NamedTuple):
    """Whose gradients are computed."""

    hidden: bool
    weight: bool
    bias: bool


class Problem(NamedTuple):
    """What an implementation computes on. Labels count from the first row of the weight."""

    hidden: Tensor  # [T, H]
    weight: Tensor  # [V, H], or a shard of its rows
    labels: Tensor  # int64 [T]
    bias: Tensor | None  # [V], or a shard
    kept: Tensor  # bool [T]: the label is not ignored
    options: Options


# The arguments that every operator takes, as its schema spells them; those of `Options` and `Wanted` in their order.
INPUTS = "Tensor hidden, Tensor weight, Tensor labels, Tensor? bias"
OPTIONS = (
    "SymInt classes, SymInt first, str group, SymInt ignore_index, float label_smoothing, float z_loss, "
    "float? softcap, ScalarType dtype, str impl"
)
WANTED = "bool for_hidden, bool for_weight, bool for_bias"


class Statistics(NamedTuple):
    """Of each token's logits, [T] in the accumulator's dtype; undefined where the label is ignored.

    `target` is NaN where the label lies outside the vocabulary. `total` is only right with label smoothing. `top` (the
    first class of the largest logit; where that is not the label's, no label may stand there instead) and `moment` (sum
    of probability x logit) are [0] unless details are wanted.
    """

    lse: Tensor
    target: Tensor
    total: Tensor
    top: Tensor
    moment: Tensor


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
