"""NT-Xent as one operator: losses of the rows with their gradient."""

import torch
from torch import Tensor

from bigssl_kernels.contrastive.ring import ring_backward, ring_forward
from bigssl_kernels.contrastive.similarity import backward, forward
from bigssl_kernels.dispatch import exact
from bigssl_kernels.distributed import gather
from bigssl_kernels.unit import row_products


@torch.library.custom_op("bigssl_kernels::nt_xent_rows", mutates_args=())
@exact
def nt_xent_rows(
    z: Tensor,
    everyone: Tensor | None,
    scale: Tensor,
    own: int,
    slope: bool,
    group: str,
    ring: bool,
    impl: str,
    room: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, logsumexps and derivatives by the scale of the rows of z, three vectors [2n]; logits kept [room].

    Args:
        z: [2n, D], this rank's first views, then its second views.
        everyone: [M, D], the z of all ranks one after the other; None for a single process.
        scale: [], 1 / temperature.
        own: where z begins in `everyone`.
        slope: whether the derivative by the scale is wanted ([0] where not).
        group: name of the process group, "" for a single process.
        ring: the ranks' rows come round a ring; `everyone` is then None.
        impl: "torch" or "triton".
        room: how many logits the backward finds kept.
    """
    kept = z.new_empty(room)
    if ring:
        lse, slopes = ring_forward(z, z, scale, True, slope, group, impl)
    else:
        lse, _, slopes, _ = forward(z, everyone, scale, own, False, slope, impl, kept)
    first, second = z.chunk(2)
    positives = row_products(first, second, lse.dtype).repeat(2)
    return lse - positives * scale, lse, slopes - positives if slope else slopes, kept


@nt_xent_rows.register_fake
def _(
    z: Tensor,
    everyone: Tensor | None,
    scale: Tensor,
    own: int,
    slope: bool,
    group: str,
    ring: bool,
    impl: str,
    room: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row = scale.new_empty(z.shape[0])
    return row, torch.empty_like(row), scale.new_empty(z.shape[0] if slope else 0), z.new_empty(room)


def _setup(ctx, inputs, output) -> None:
    z, everyone, scale, ctx.own, ctx.slope, ctx.group, ctx.ring, ctx.impl, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(z, everyone, scale, *output[1:])


def _backward(ctx, upstream: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    z, everyone, scale, lse, slopes, kept = ctx.saved_tensors
    grad_z = grad_scale = None
    if ctx.needs_input_grad[0]:
        weight = upstream.to(lse.dtype).contiguous()
        col_lse = col_weight = None
        if ctx.group:  # all that the backward asks of other ranks: two numbers a row
            col_lse, col_weight = gather(torch.stack([lse, weight], 1), ctx.group).T.contiguous().unbind()
        if ctx.ring and col_lse is not None and col_weight is not None:
            grad = ring_backward(z, z, scale, True, lse, weight, col_lse, col_weight, ctx.group, ctx.impl)
        else:
            stats = (lse, weight, col_lse, col_weight)
            grad, _ = backward(z, everyone, scale, ctx.own, *stats, True, False, ctx.impl, kept)
        half = z.shape[0] // 2
        pull = (weight[:half] + weight[half:])[:, None] * scale
        grad[:half].addcmul_(z[half:], pull, value=-1)
        grad[half:].addcmul_(z[:half], pull, value=-1)
        grad_z = grad.to(z.dtype)
    if ctx.slope:
        grad_scale = torch.dot(upstream.to(lse.dtype), slopes)
    return grad_z, None, grad_scale, None, None, None, None, None, None


nt_xent_rows.register_autograd(_backward, setup_context=_setup)
