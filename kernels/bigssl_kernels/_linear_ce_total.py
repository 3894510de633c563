"""The weighted sum of the losses as one operator, whose gradients are computed together with it."""

import torch
from torch import Tensor

from bigssl_kernels._dispatch import exact, module, refuse_double_backward
from bigssl_kernels._linear_ce import check_labels, fake_gradients, fake_rows, outputs, present
from bigssl_kernels._linear_ce_terms import Options, Wanted


@torch.library.custom_op("bigssl_kernels::linear_ce_total", mutates_args=())
@exact
def linear_ce_total(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    upstream: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    dtype: torch.dtype,
    impl: str,
    details: bool,
    for_hidden: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum of upstream [T] x losses [T], the outputs of `linear_ce_rows`, and the wanted gradients ([0] else)."""
    kept = labels != ignore_index
    check_labels(labels, kept, weight.shape[0])
    options = Options(weight.shape[0], label_smoothing, z_loss, softcap, dtype)
    wanted = Wanted(for_hidden, for_weight, for_bias and bias is not None)
    run = module("linear_ce", impl).forward
    stats, grads = run(hidden, weight, bias, labels, kept, upstream, options, details, wanted)
    loss, lse, correct, entropy = outputs(stats, kept, labels, options, details)
    total = torch.where(kept, loss * upstream, 0).sum()
    grad_hidden, grad_weight, grad_bias = present(grads, (hidden, weight, bias))
    return total, loss, lse, correct, entropy, grad_hidden, grad_weight, grad_bias


@linear_ce_total.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    upstream: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    dtype: torch.dtype,
    impl: str,
    details: bool,
    for_hidden: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = fake_rows(hidden, labels, details)
    return rows[0].new_empty(()), *rows, *fake_gradients(hidden, weight, bias, (for_hidden, for_weight, for_bias))


def _setup(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros the size of the weight stand for its gradient's gradient
    ctx.wanted = inputs[-3:]
    ctx.save_for_backward(*output[5:])


def _backward(ctx, upstream: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
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
    return scaled[0], scaled[1], None, scaled[2], *11 * [None]


linear_ce_total.register_autograd(_backward, setup_context=_setup)
