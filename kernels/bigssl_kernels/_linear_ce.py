"""Linear cross-entropy as operators: losses of all tokens, with their gradients at once or from a second operator.

`linear_ce_rows` gives each token's loss; its gradient recomputes the logits, because the upstream of each row is known
only then. `linear_ce_total` gives the weighted sum of the losses; as its gradients need nothing but a factor from
upstream, it computes them together with the losses and holds them instead of the weight.
"""

import os

import torch
from torch import Tensor

from bigssl_kernels._checks import accumulator
from bigssl_kernels._dispatch import exact, module, refuse_double_backward
from bigssl_kernels._linear_ce_terms import Gradients, Options, Statistics, Wanted, losses, slopes

DEBUG = "BIGSSL_KERNELS_DEBUG"


def check_labels(labels: Tensor, kept: Tensor, vocabulary: int) -> None:
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


def outputs(
    stats: Statistics, kept: Tensor, labels: Tensor, options: Options, details: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, logsumexps and, with `details`, correctness and entropies: zero where ignored."""
    loss, lse = torch.where(kept, losses(stats, options), 0), torch.where(kept, stats.lse, 0)
    if not details:
        return loss, lse, kept.new_empty(0), lse.new_empty(0)
    return loss, lse, kept & (stats.top == labels), torch.where(kept, stats.lse - stats.moment, 0)


def present(grads: Gradients, like: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor, ...]:
    """Operators return tensors: [0] where there is no gradient, else in the dtype of its input."""
    first = like[0]
    return tuple(
        first.new_empty(0) if grad is None or value is None else grad.to(value.dtype)
        for grad, value in zip(grads, like, strict=True)
    )


def fake_rows(hidden: Tensor, labels: Tensor, details: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row = hidden.new_empty(labels.shape, dtype=accumulator(hidden.dtype))
    extra = labels.shape if details else 0
    return row, torch.empty_like(row), labels.new_empty(extra, dtype=torch.bool), row.new_empty(extra)


def fake_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    grads = [
        hidden.new_empty(0) if value is None or not want else value.new_empty(value.shape)
        for value, want in zip((hidden, weight, bias), wanted, strict=True)
    ]
    return grads[0], grads[1], grads[2]


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
    details: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [T], logsumexps [T] and, with `details`, correctness [T] and entropies [T]; zero where ignored."""
    kept = labels != ignore_index
    check_labels(labels, kept, weight.shape[0])
    options = Options(weight.shape[0], label_smoothing, z_loss, softcap, dtype)
    run = module("linear_ce", impl).forward
    stats, _ = run(hidden, weight, bias, labels, kept, None, options, details, Wanted(False, False, False))
    return outputs(stats, kept, labels, options, details)


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
    details: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return fake_rows(hidden, labels, details)


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
    options = Options(weight.shape[0], label_smoothing, z_loss, softcap, dtype)
    by = slopes(upstream.to(lse.dtype), lse, options)
    grads = module("linear_ce", impl).backward(
        hidden,
        weight,
        bias,
        labels,
        labels != ignore_index,
        lse,
        by,
        options,
        Wanted(for_hidden, for_weight, for_bias and bias is not None),
    )
    grad_hidden, grad_weight, grad_bias = present(grads, (hidden, weight, bias))
    return grad_hidden, grad_weight, grad_bias


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
    return fake_gradients(hidden, weight, bias, (for_hidden, for_weight, for_bias))


linear_ce_gradient.register_autograd(refuse_double_backward)


def _setup_rows(ctx, inputs, output) -> None:
    hidden, weight, labels, bias, *ctx.options, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, labels, bias, output[1])


def _rows_backward(ctx, upstream: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    hidden, weight, labels, bias, lse = ctx.saved_tensors
    wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
    grads = linear_ce_gradient(upstream.contiguous(), lse, hidden, weight, labels, bias, *ctx.options, *wanted)
    for_hidden, for_weight, for_bias = (grad if want else None for grad, want in zip(grads, wanted, strict=True))
    return for_hidden, for_weight, None, for_bias, *7 * [None]


linear_ce_rows.register_autograd(_rows_backward, setup_context=_setup_rows)
