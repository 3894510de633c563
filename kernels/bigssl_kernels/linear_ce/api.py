"""Cross-entropy of a linear head, for masked and causal language models: the logits are never held."""

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from bigssl_kernels import reference
from bigssl_kernels.agreement import agreed
from bigssl_kernels.checks import accumulator, compute_dtype
from bigssl_kernels.dispatch import FAMILIES, choose
from bigssl_kernels.distributed import group_name, rank, world_size
from bigssl_kernels.linear_ce.checks import check_options, check_tensors, checked_labels
from bigssl_kernels.linear_ce.operator import linear_ce_rows
from bigssl_kernels.linear_ce.sharded import shard
from bigssl_kernels.linear_ce.terms import Options
from bigssl_kernels.linear_ce.total import linear_ce_total

NAME = "linear_cross_entropy"


class TokenStatistics(NamedTuple):
    """What each token's logits say, [T], without gradients; 0 (False) where the label is ignored."""

    loss: Tensor  # before reduction and token weights
    logsumexp: Tensor
    correct: Tensor  # bool: the largest logit is the label's
    entropy: Tensor  # of the predicted distribution, in nats; a class with a bias of -inf adds nothing


@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    return_aux: Literal[True],
    **options: Any,
) -> tuple[Tensor, TokenStatistics]: ...


@overload
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor: ...


def linear_cross_entropy(  # type: ignore[misc]  # the overloads do not spell out the options
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    token_weights: Tensor | None = None,
    return_aux: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, TokenStatistics]:
    """F.cross_entropy(hidden @ weight.T + bias, labels) without its T x V logits.

    Only rows whose label is not `ignore_index` are computed. A frozen hidden, weight or bias costs nothing. With "mean"
    and "sum" the gradients are computed together with the loss; with "none", whose upstream gradients come later, and
    for float16, whose gradients need their loss scale, the logits are computed twice.

    Args:
        hidden: [T, H] states, float32, bfloat16, float16 or float64 (the Triton kernels not); any strides.
        weight: [V, H] rows of the output embedding; same dtype (any under autocast) and device.
        labels: [T] integers in 0 .. V-1, or `ignore_index`.
        bias: [V], same dtype, or None.
        ignore_index: rows with this label give no loss and no gradient.
        reduction: "mean" over the kept rows, "sum", or "none": [T] losses, 0 where ignored, each with its own upstream
            gradient.
        label_smoothing: share of the target spread over all V classes, in [0, 1].
        z_loss: adds z_loss * logsumexp**2 to each kept row (Chowdhery et al. 2022); zero or above.
        softcap: logits become softcap * tanh(logits / softcap) (Gemma Team 2024); above zero.
        token_weights: [T] factors of the losses, without gradient; "mean" then divides by their sum over kept rows.
        return_aux: also return the statistics of each token.
        impl: "auto", "triton", "torch" or "reference"; the variable BIGSSL_KERNELS replaces "auto".

    Returns:
        A float32 scalar (float64 for float64 inputs) or [T] losses; with `return_aux` a pair of this and a
        `TokenStatistics`. Without any kept row: 0 and zero gradients.

    Raises:
        ValueError: shapes, dtypes, devices or an option do not fit, or a label lies outside (on the CPU, elsewhere with
            BIGSSL_KERNELS_DEBUG=1, which costs a device sync; without it that row's loss is NaN).
        RuntimeError: the implementation asked for cannot run here.
    """
    check_tensors(NAME, hidden, weight, labels, bias, token_weights)
    check_options(NAME, reduction, label_smoothing, z_loss, softcap)
    labels = checked_labels(NAME, labels, weight.shape[0], ignore_index)
    how = (compute_dtype(hidden), choose(NAME, "linear_ce", impl, hidden))
    options = Options(weight.shape[0], 0, "", ignore_index, label_smoothing, z_loss, softcap, *how)
    factors = _factors(hidden, labels != ignore_index, token_weights, reduction)
    result, stats = _reduced((hidden, weight, labels, bias), factors, options, reduction, return_aux)
    return (result, stats) if return_aux else result


def _reduced(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
    factors: Tensor,
    options: Options,
    reduction: str,
    details: bool,
) -> tuple[Tensor, TokenStatistics]:
    """The loss and what else is known of each token, by whichever operator suits."""
    hidden, weight, labels, bias = inputs
    if options.impl == "reference":
        wished = (options.ignore_index, options.label_smoothing, options.z_loss, options.softcap)
        rows = reference.linear_cross_entropy(*inputs, *wished)
    elif reduction != "none" and _worth_at_once(hidden, weight, bias):
        wanted = (hidden.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad)
        result, *rest = linear_ce_total(factors, *inputs, *options, details, *wanted)[:5]
        return result, TokenStatistics(*rest)
    else:
        rows = linear_ce_rows(*inputs, *options, details)
    result = torch.where(labels != options.ignore_index, rows[0] * factors, 0)
    return result if reduction == "none" else result.sum(), TokenStatistics(rows[0].detach(), *rows[1:])


def sharded_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    classes: int,
    group: ProcessGroup | None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    token_weights: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """`linear_cross_entropy` with the vocabulary spread over the ranks of a group (Shoeybi et al. 2019).

    Every rank calls it with the same hidden states, labels and options, and gets the same loss and the same, complete
    gradient of the hidden states; weight and bias get the gradient of their shard. Nothing is averaged over ranks.

    Args:
        hidden: [T, H], the same on every rank of the group (ValueError on every rank where shape or dtype are not;
            what one rank finds wrong, all raise; a group of nccl alone is asked at its first call only).
        weight: [v, H], this rank's rows of [V, H] as torch.chunk deals them: ceil(V / W) each, the last ranks fewer,
            none of them empty.
        labels: [T] integers in 0 .. V-1, or `ignore_index`.
        bias: [v], this rank's entries, or None.
        classes: V.
        group: the ranks that share the vocabulary; None for a single process.
        ignore_index, reduction, label_smoothing, z_loss, softcap, token_weights: as in `linear_cross_entropy`.
        impl: "auto", "triton" or "torch" ("reference" has no sharded form).

    Raises:
        ValueError: as `linear_cross_entropy`, and where the shard is not the rank's.
    """
    name = "sharded_linear_cross_entropy"
    with agreed(name, "hidden", hidden, group):
        check_tensors(name, hidden, weight, labels, bias, token_weights)
        check_options(name, reduction, label_smoothing, z_loss, softcap)
        labels = checked_labels(name, labels, classes, ignore_index)
        first, stop = shard(classes, world_size(group), rank(group))
        if weight.shape[0] != stop - first:
            raise ValueError(
                f"{name}: weight has {weight.shape[0]} rows; rank {rank(group)} of {world_size(group)} holds "
                f"{stop - first} of {classes} classes ({first} to {stop - 1})"
            )
        chosen = choose(name, "linear_ce", impl, hidden)
        if chosen == "reference":
            raise ValueError(f"{name}: impl is 'reference'; allowed are 'auto', 'triton' and 'torch'")
    factors = _factors(hidden, labels != ignore_index, token_weights, reduction)
    how = (compute_dtype(hidden), chosen)
    options = Options(classes, first, group_name(group), ignore_index, label_smoothing, z_loss, softcap, *how)
    rows = linear_ce_rows(hidden, weight, labels, bias, *options, False)[0] * factors
    return rows if reduction == "none" else rows.sum()


def _factors(hidden: Tensor, kept: Tensor, token_weights: Tensor | None, reduction: str) -> Tensor:
    """What each token's loss is multiplied with [T]."""
    dtype = accumulator(hidden.dtype)
    factors = kept.to(dtype) if token_weights is None else torch.where(kept, token_weights.to(dtype), 0)
    if reduction != "mean":
        return factors
    total = factors.sum()
    return factors / torch.where(total == 0, 1, total)


def _worth_at_once(*inputs: Tensor | None) -> bool:
    """Are there gradients to compute together with the loss? Not in float16, which has to see the loss scale first."""
    given = [value for value in inputs if value is not None]
    wanted = torch.is_grad_enabled() and any(value.requires_grad for value in given)
    return wanted and all(value.dtype != torch.float16 for value in given)


FAMILIES[NAME] = FAMILIES["sharded_linear_cross_entropy"] = "linear_ce"
