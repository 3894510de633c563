"""Linear cross-entropy as operators: losses of all tokens, with their gradients at once or from a second operator.

`linear_ce_rows` gives each token's loss; its gradient recomputes the logits, because the upstream of each row is known
only then. `linear_ce_total` gives the weighted sum of the losses; as its gradients need nothing but a factor from
upstream, it computes them together with the losses and holds them instead of the weight.

Operators take flat arguments: tensors, then the fields of `Options`. Their schemas spell these once, and `problem`
reads them once, so that no two forms can disagree.
"""

from typing import Any

import torch
from torch import Tensor

from bigssl_kernels.checks import accumulator
from bigssl_kernels.dispatch import exact, module, refuse_double_backward
from bigssl_kernels.linear_ce.sharded import join, sum_over_shards
from bigssl_kernels.linear_ce.terms import (
    INPUTS,
    OPTIONS,
    WANTED,
    Gradients,
    Options,
    Problem,
    Statistics,
    Wanted,
    losses,
    slopes,
)

THREE = "(Tensor, Tensor, Tensor)"
TENSORS, FIELDS = INPUTS.count("Tensor"), len(Options._fields)


def operator(name: str, schema: str) -> Any:
    """A custom operator of this family out of a function of flat arguments, with autocast shut out."""
    make = torch.library.custom_op(f"bigssl_kernels::{name}", mutates_args=(), schema=schema)
    return lambda function: make(exact(function))


def problem(*args: Any) -> tuple[Problem, tuple[Any, ...]]:
    """Arguments from `hidden` on -> what to compute on, and those behind the options."""
    hidden, weight, labels, bias = args[:TENSORS]
    options = Options(*args[TENSORS : TENSORS + FIELDS])
    kept = labels != options.ignore_index
    local = labels - options.first if options.first else labels
    return Problem(hidden, weight, local, bias, kept, options), args[TENSORS + FIELDS :]


def outputs(given: Problem, stats: Statistics, details: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, logsumexps and, with `details`, correctness and entropies: zero where ignored."""
    kept = given.kept
    loss, lse = torch.where(kept, losses(stats, given.options), 0), torch.where(kept, stats.lse, 0)
    if not details:
        return loss, lse, kept.new_empty(0), lse.new_empty(0)
    return loss, lse, kept & (stats.top == given.labels), torch.where(kept, stats.lse - stats.moment, 0)


def present(grads: Gradients, given: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Operators return tensors: [0] where there is no gradient, else in the dtype of its input."""
    first, second, third = (
        given.hidden.new_empty(0) if grad is None or value is None else grad.to(value.dtype)
        for grad, value in zip(grads, (given.hidden, given.weight, given.bias), strict=True)
    )
    return first, second, third


def fake_rows(hidden: Tensor, labels: Tensor, details: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row = hidden.new_empty(labels.shape, dtype=accumulator(hidden.dtype))
    extra = labels.shape if details else 0
    return row, torch.empty_like(row), labels.new_empty(extra, dtype=torch.bool), row.new_empty(extra)


def fake_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (
        hidden.new_empty(0) if value is None or not want else value.new_empty(value.shape)
        for value, want in zip((hidden, weight, bias), wanted, strict=True)
    )
    return first, second, third


@operator("linear_ce_rows", f"({INPUTS}, {OPTIONS}, bool details) -> (Tensor, Tensor, Tensor, Tensor)")
def linear_ce_rows(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [T], logsumexps [T] and, with `details`, correctness [T] and entropies [T]; zero where ignored.

    Over all shards where the vocabulary is sharded, without details.
    """
    given, (details,) = problem(*args)
    run = module("linear_ce", given.options.impl).forward
    stats, _ = run(given, None, details, Wanted(False, False, False))
    return outputs(given, join(given, stats) if given.options.group else stats, details)


@linear_ce_rows.register_fake
def _(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return fake_rows(args[0], args[2], args[-1])


@operator("linear_ce_gradient", f"(Tensor upstream, Tensor lse, {INPUTS}, {OPTIONS}, {WANTED}) -> {THREE}")
def linear_ce_gradient(upstream: Tensor, lse: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum_t upstream_t loss_t by hidden, weight and bias, each in its dtype; [0] where not wanted.

    The gradient by hidden is summed over the shards where the vocabulary is sharded.
    """
    given, wanted = problem(*args)
    by = slopes(upstream.to(lse.dtype), lse, given.options)
    grads = module("linear_ce", given.options.impl).backward(given, lse, by, Wanted(*wanted))
    return present(sum_over_shards(grads, given, lse.dtype), given)


@linear_ce_gradient.register_fake
def _(upstream: Tensor, lse: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(args[0], args[1], args[3], args[-3:])


linear_ce_gradient.register_autograd(refuse_double_backward)


def _setup(ctx, inputs, output) -> None:
    ctx.options = inputs[TENSORS:-1]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:TENSORS], output[1])


def _backward(ctx, upstream: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, lse = ctx.saved_tensors
    wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
    grads = linear_ce_gradient(upstream.contiguous(), lse, *tensors, *ctx.options, *wanted)
    for_hidden, for_weight, for_bias = (grad if want else None for grad, want in zip(grads, wanted, strict=True))
    return for_hidden, for_weight, None, for_bias, *(FIELDS + 1) * [None]


linear_ce_rows.register_autograd(_backward, setup_context=_setup)
