"""The weighted sum of the losses as one operator, whose gradients are computed together with it."""

from typing import Any

import torch
from torch import Tensor

from bigssl_kernels.dispatch import module, refuse_double_backward
from bigssl_kernels.linear_ce.operator import FIELDS, fake_gradients, fake_rows, operator, outputs, present, problem
from bigssl_kernels.linear_ce.terms import INPUTS, OPTIONS, WANTED, Wanted

RESULTS = ", ".join(8 * ["Tensor"])


@operator("linear_ce_total", f"(Tensor upstream, {INPUTS}, {OPTIONS}, bool details, {WANTED}) -> ({RESULTS})")
def linear_ce_total(upstream: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Sum of upstream [T] x losses [T], the outputs of `linear_ce_rows`, and the wanted gradients ([0] else)."""
    given, (details, *wanted) = problem(*args)
    run = module("linear_ce", given.options.impl).forward
    stats, grads = run(given, upstream, details, Wanted(*wanted))
    rows = outputs(given, stats, details)
    total = torch.where(given.kept, rows[0] * upstream, 0).sum()
    return total, *rows, *present(grads, given)


@linear_ce_total.register_fake
def _(upstream: Tensor, *args: Any) -> tuple[Tensor, ...]:
    rows = fake_rows(args[0], args[2], args[-4])
    return rows[0].new_empty(()), *rows, *fake_gradients(args[0], args[1], args[3], args[-3:])


def _setup(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros the size of the weight stand for its gradient's gradient
    ctx.wanted = inputs[-3:]
    ctx.save_for_backward(*output[5:])


def _backward(ctx, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:  # nobody asks for the gradients
        return (FIELDS + 9) * (None,)
    grads = ctx.saved_tensors
    eager = type(upstream) is Tensor  # not one that a compiler or a dispatch mode traces
    if eager and torch.is_grad_enabled():
        refuse_double_backward(ctx)
    factor_is_one = eager and upstream.device.type == "cpu" and upstream.item() == 1
    # A graph that is not kept has no further use for its gradients: they are scaled where they are.
    in_place = eager and not torch._C._autograd._get_current_graph_task_keep_graph()
    scaled = [
        None if not want else grad if factor_is_one else grad.mul_(upstream) if in_place else grad * upstream
        for grad, want in zip(grads, ctx.wanted, strict=True)
    ]
    return None, scaled[0], scaled[1], None, scaled[2], *(FIELDS + 4) * [None]


linear_ce_total.register_autograd(_backward, setup_context=_setup)
