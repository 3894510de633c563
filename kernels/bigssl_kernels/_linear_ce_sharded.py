"""Linear cross-entropy whose vocabulary is spread over the ranks of a group, as in Megatron-LM (Shoeybi et al. 2019).

Each rank holds some rows of the weight and computes their logits for all tokens, which every rank has. What crosses the
network are three numbers a token in the forward and the gradient of the hidden states in the backward.
"""

import torch
from torch import Tensor

from bigssl_kernels._dispatch import exact, module, refuse_double_backward
from bigssl_kernels._distributed import _sum_over_ranks as sum_over_ranks
from bigssl_kernels._distributed import gather
from bigssl_kernels._linear_ce import check_labels, fake_gradients, fake_rows, present
from bigssl_kernels._linear_ce_terms import Options, Statistics, Wanted, losses, slopes


def shard(classes: int, size: int, place: int) -> tuple[int, int]:
    """First class and end of a rank's shard: ceil(classes / size) rows each, the last fewer, as torch.chunk has."""
    width = -(-classes // size)
    return min(place * width, classes), min((place + 1) * width, classes)


def _join(stats: Statistics, kept: Tensor, labels: Tensor, local: range, classes: int, group: str) -> Statistics:
    """Statistics of the whole vocabulary from those of every shard (here: `local`), the same bits on every rank."""
    target = torch.where((labels >= local.start) & (labels < local.stop), stats.target, 0)
    mine = torch.where(kept, torch.stack([stats.lse, target, stats.total]), 0)
    parts = gather(mine, group).view(-1, *mine.shape)  # [ranks, 3, T]
    target = torch.where((labels >= 0) & (labels < classes), parts[:, 1].sum(0), float("nan"))
    return Statistics(parts[:, 0].logsumexp(0), target, parts[:, 2].sum(0), stats.top, stats.moment)


@torch.library.custom_op("bigssl_kernels::linear_ce_sharded_rows", mutates_args=())
@exact
def linear_ce_sharded_rows(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    classes: int,
    first: int,
    group: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    dtype: torch.dtype,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Losses [T] and logsumexps [T] over all shards, zero where ignored; the weight holds classes from `first` on."""
    kept = labels != ignore_index
    check_labels(labels, kept, classes)
    options = Options(classes, label_smoothing, z_loss, softcap, dtype)
    run, none = module("linear_ce", impl).forward, Wanted(False, False, False)
    stats, _ = run(hidden, weight, bias, labels - first, kept, None, options, False, none)
    stats = _join(stats, kept, labels, range(first, first + len(weight)), classes, group)
    return torch.where(kept, losses(stats, options), 0), torch.where(kept, stats.lse, 0)


@linear_ce_sharded_rows.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    classes: int,
    first: int,
    group: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    dtype: torch.dtype,
    impl: str,
) -> tuple[Tensor, Tensor]:
    return fake_rows(hidden, labels, False)[:2]


@torch.library.custom_op("bigssl_kernels::linear_ce_sharded_gradient", mutates_args=())
@exact
def linear_ce_sharded_gradient(
    upstream: Tensor,
    lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    classes: int,
    first: int,
    group: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    dtype: torch.dtype,
    impl: str,
    for_hidden: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by hidden, summed over the shards, and by this rank's weight and bias; [0] where not wanted."""
    options = Options(classes, label_smoothing, z_loss, softcap, dtype)
    wanted = Wanted(for_hidden, for_weight, for_bias and bias is not None)
    by = slopes(upstream.to(lse.dtype), lse, options)
    run = module("linear_ce", impl).backward
    grad_x, *rest = run(hidden, weight, bias, labels - first, labels != ignore_index, lse, by, options, wanted)
    if grad_x is not None and group:
        grad_x = sum_over_ranks(grad_x.to(lse.dtype), group)
    grad_hidden, grad_weight, grad_bias = present((grad_x, rest[0], rest[1]), (hidden, weight, bias))
    return grad_hidden, grad_weight, grad_bias


@linear_ce_sharded_gradient.register_fake
def _(
    upstream: Tensor,
    lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    classes: int,
    first: int,
    group: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    dtype: torch.dtype,
    impl: str,
    for_hidden: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(hidden, weight, bias, (for_hidden, for_weight, for_bias))


linear_ce_sharded_gradient.register_autograd(refuse_double_backward)


def _setup(ctx, inputs, output) -> None:
    hidden, weight, labels, bias, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, labels, bias, output[1])


def _backward(ctx, upstream: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    hidden, weight, labels, bias, lse = ctx.saved_tensors
    wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
    grads = linear_ce_sharded_gradient(upstream.contiguous(), lse, hidden, weight, labels, bias, *ctx.options, *wanted)
    for_hidden, for_weight, for_bias = (grad if want else None for grad, want in zip(grads, wanted, strict=True))
    return for_hidden, for_weight, None, for_bias, *9 * [None]


linear_ce_sharded_rows.register_autograd(_backward, setup_context=_setup)
