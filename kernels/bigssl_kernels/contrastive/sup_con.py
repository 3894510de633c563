"""Supervised contrastive loss as one operator. Positives enter through sums over their class: no M x M mask."""

import torch
from torch import Tensor

from bigssl_kernels.contrastive.similarity import backward, forward
from bigssl_kernels.dispatch import exact, refuse_double_backward
from bigssl_kernels.distributed import gather


def classes_of(ids: Tensor) -> tuple[Tensor, Tensor]:
    """ids [M] -> class of each row in 0 .. M-1 and number of its positives (the other rows of its class): [M] each.

    By sorting, so that nothing of it depends on the ids' values: no device sync, shapes known beforehand.
    """
    ordered, order = ids.sort(stable=True)
    fresh = torch.zeros_like(ordered, dtype=torch.int64)
    fresh[1:] = ordered[1:] != ordered[:-1]
    classes = torch.empty_like(order).scatter_(0, order, fresh.cumsum(0))
    sizes = torch.zeros_like(classes).index_put_((classes,), torch.ones_like(classes), accumulate=True)
    return classes, sizes[classes] - 1


def class_sums(rows: Tensor, classes: Tensor) -> Tensor:
    """Sum of the rows of each class, [M, D]; classes without rows keep 0."""
    return torch.zeros_like(rows).index_put_((classes,), rows, accumulate=True)


@torch.library.custom_op("bigssl_kernels::sup_con_rows", mutates_args=())
@exact
def sup_con_rows(
    z: Tensor,
    everyone: Tensor | None,
    ids: Tensor,
    scale: Tensor,
    own: int,
    slope: bool,
    group: str,
    impl: str,
    room: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (0 for a row without positives), logsumexps, derivatives by the scale ([0] where not wanted), [m] each;
    logits kept [room].

    Args:
        z: [m, D], this rank's rows.
        everyone: [M, D], the rows of all ranks in rank order; None for a single process.
        ids: [M], of all ranks' rows.
        scale: [], 1 / temperature.
        own: where z begins in `everyone`.
        slope: whether the derivative by the scale is wanted.
        group: name of the process group, "" for a single process.
        impl: "torch" or "triton".
        room: how many logits the backward finds kept.
    """
    kept = z.new_empty(room)
    lse, _, slopes, _ = forward(z, everyone, scale, own, False, slope, impl, kept)
    classes, positives = classes_of(ids)
    wide = (z if everyone is None else everyone).to(scale.dtype)
    mine = slice(own, own + z.shape[0])
    others = class_sums(wide, classes)[classes[mine]] - wide[mine]  # sum of the positives of each row
    count = positives[mine]
    mean = torch.linalg.vecdot(wide[mine], others) / count.clamp(min=1)
    losses = (lse - mean * scale).masked_fill(count == 0, 0.0)
    return losses, lse, (slopes - mean).masked_fill(count == 0, 0.0) if slope else slopes, kept


@sup_con_rows.register_fake
def _(z: Tensor, everyone, ids: Tensor, scale: Tensor, own: int, slope: bool, group: str, impl: str, room: int = 0):
    rows = [scale.new_empty(z.shape[0]) for _ in range(2)]
    return rows[0], rows[1], scale.new_empty(z.shape[0] if slope else 0), z.new_empty(room)


@torch.library.custom_op("bigssl_kernels::sup_con_pull", mutates_args=())
@exact
def sup_con_pull(rows: Tensor, ids: Tensor, weight: Tensor, scale: Tensor, own: int, count: int) -> Tensor:
    """Gradient of -sum_i weight_i * (mean logit of row i's positives) by the `count` rows from `own` on: [count, D].

    Args:
        rows: [M, D] of all ranks; ids, weight: [M]; scale: [].
    """
    classes, positives = classes_of(ids)
    wide = rows.to(scale.dtype)
    share = (weight * scale).masked_fill(positives == 0, 0.0) / positives.clamp(min=1)
    mine = slice(own, own + count)
    local, here = wide[mine], classes[mine]
    pulled = share[mine, None] * (class_sums(wide, classes)[here] - local)
    pulling = class_sums(wide * share[:, None], classes)[here] - share[mine, None] * local
    return -(pulled + pulling)


@sup_con_pull.register_fake
def _(rows: Tensor, ids: Tensor, weight: Tensor, scale: Tensor, own: int, count: int) -> Tensor:
    return scale.new_empty(count, rows.shape[1])


sup_con_pull.register_autograd(refuse_double_backward)


def _setup(ctx, inputs, output) -> None:
    z, everyone, ids, scale, ctx.own, ctx.slope, ctx.group, ctx.impl, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(z, everyone, ids, scale, *output[1:])


def _backward(ctx, upstream: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    z, everyone, ids, scale, lse, slopes, kept = ctx.saved_tensors
    upstream = upstream.to(scale.dtype).contiguous()
    grad_z = None
    if ctx.needs_input_grad[0]:
        mine = slice(ctx.own, ctx.own + z.shape[0])
        weight = upstream.masked_fill(classes_of(ids)[1][mine] == 0, 0.0)
        everything, col_lse, col_weight = weight, None, None
        if ctx.group:
            col_lse, everything = gather(torch.stack([lse, weight], 1), ctx.group).T.contiguous().unbind()
            col_weight = everything
        stats = (lse, weight, col_lse, col_weight)
        grad, _ = backward(z, everyone, scale, ctx.own, *stats, True, False, ctx.impl, kept)
        rows = z if everyone is None else everyone
        grad_z = (grad + sup_con_pull(rows, ids, everything, scale, ctx.own, z.shape[0])).to(z.dtype)
    grad_scale = torch.dot(upstream, slopes) if ctx.slope else None
    return grad_z, None, None, grad_scale, None, None, None, None, None


sup_con_rows.register_autograd(_backward, setup_context=_setup)
