"""Linear cross-entropy as one operator: losses of all tokens with the gradients of hidden, weight and bias."""

import os

import torch
from torch import Tensor

from bigssl_kernels._checks import accumulator
from bigssl_kernels._dispatch import exact, module, refuse_double_backward

DEBUG = "BIGSSL_KERNELS_DEBUG"


def _check_labels(labels: Tensor, kept: Tensor, vocabulary: int) -> None:
    """Raise on a label outside the vocabulary: on the CPU always, elsewhere (a device sync) only where asked for."""
    if labels.device.type != "cpu" and os.environ.get(DEBUG) != "1":
        return
    wrong = kept & ((labels < 0) | (labels >= vocabulary))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"linear_cross_entropy: labels[{row}] is {int(labels[row])}; allowed are 0 to {vocabulary - 1} "
            "(the rows of weight) and ignore_index"
        )


@torch.library.custom_op("bigssl_kernels::linear_ce_rows", mutates_args=())
@exact
def linear_ce_rows(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    dtype: torch.dtype,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Losses [T] (0 where ignored) and logsumexps [T] (0 where ignored), matrix products in `dtype`."""
    kept = labels != ignore_index
    _check_labels(labels, kept, weight.shape[0])
    index = kept.nonzero().squeeze(1)
    lse, target, total = module("linear_ce", impl).rows_forward(
        hidden[index].to(dtype), weight, bias, labels[index], softcap
    )
    losses = lse - (1 - label_smoothing) * target + z_loss * lse.square()
    if label_smoothing:
        losses -= label_smoothing / weight.shape[0] * total
    blank = losses.new_zeros(labels.shape)
    return blank.index_copy(0, index, losses), blank.index_copy(0, index, lse)


@linear_ce_rows.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    dtype: torch.dtype,
    impl: str,
) -> tuple[Tensor, Tensor]:
    row = hidden.new_empty(labels.shape, dtype=accumulator(hidden.dtype))
    return row, torch.empty_like(row)


@torch.library.custom_op("bigssl_kernels::linear_ce_gradient", mutates_args=())
@exact
def linear_ce_gradient(
    upstream: Tensor,
    lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
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
    """Gradients of sum_t upstream_t loss_t by hidden, weight and bias, each in its dtype; [0] where not wanted."""
    index = (labels != ignore_index).nonzero().squeeze(1)
    upstream, lse = upstream[index].to(lse.dtype), lse[index]
    grad_x, grad_weight, grad_bias = module("linear_ce", impl).rows_backward(
        hidden[index].to(dtype),
        weight,
        bias,
        labels[index],
        lse,
        upstream * (1 + 2 * z_loss * lse),
        upstream * (label_smoothing - 1),
        upstream * (-label_smoothing / weight.shape[0]),
        softcap,
        (for_hidden, for_weight, for_bias),
    )
    grad_hidden = hidden.new_empty(0)
    if grad_x is not None:
        grad_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
        grad_hidden.index_copy_(0, index, grad_x.to(hidden.dtype))
    none = weight.new_empty(0)
    if grad_bias is not None and bias is not None:
        grad_bias = grad_bias.to(bias.dtype)
    return grad_hidden, none if grad_weight is None else grad_weight, none.clone() if grad_bias is None else grad_bias


@linear_ce_gradient.register_fake
def _(
    upstream: Tensor,
    lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
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
    grad_bias = bias.new_empty(bias.shape) if for_bias and bias is not None else weight.new_empty(0)
    return (
        hidden.new_empty(hidden.shape if for_hidden else 0),
        weight.new_empty(weight.shape if for_weight else 0),
        grad_bias,
    )


linear_ce_gradient.register_autograd(refuse_double_backward)


def _setup(ctx, inputs, output) -> None:
    hidden, weight, labels, bias, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(hidden, weight, labels, bias, output[1])


def _backward(ctx, upstream: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    hidden, weight, labels, bias, lse = ctx.saved_tensors
    wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
    grads = linear_ce_gradient(upstream.contiguous(), lse, hidden, weight, labels, bias, *ctx.options, *wanted)
    for_hidden, for_weight, for_bias = (grad if want else None for grad, want in zip(grads, wanted, strict=True))
    return for_hidden, for_weight, None, for_bias, None, None, None, None, None, None


linear_ce_rows.register_autograd(_backward, setup_context=_setup)
