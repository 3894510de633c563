"""InfoNCE against a queue as one operator: losses of the queries with the gradients of all three inputs."""

import torch
from torch import Tensor

from bigssl_kernels.contrastive.similarity import backward, forward
from bigssl_kernels.dispatch import exact
from bigssl_kernels.unit import row_products


@torch.library.custom_op("bigssl_kernels::info_nce_rows", mutates_args=())
@exact
def info_nce_rows(
    query: Tensor, positive: Tensor, negatives: Tensor, scale: Tensor, slope: bool, impl: str, room: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, logsumexps over positive and negatives, derivatives by the scale ([0] where not wanted), [n] each; logits
    kept [room].

    Args:
        query, positive: [n, D].
        negatives: [K, D].
        scale: [], 1 / temperature.
        slope: whether the derivative by the scale is wanted.
        impl: "torch" or "triton".
        room: how many logits the backward finds kept.
    """
    kept = query.new_empty(room)
    rest, _, rest_slope, _ = forward(query, negatives, scale, None, False, slope, impl, kept)
    similarity = row_products(query, positive, scale.dtype)
    logit = similarity * scale
    lse = torch.logaddexp(rest, logit)
    if not slope:
        return lse - logit, lse, rest_slope, kept
    slopes = torch.exp(rest - lse) * rest_slope + torch.expm1(logit - lse) * similarity
    return lse - logit, lse, slopes, kept


@info_nce_rows.register_fake
def _(query: Tensor, positive: Tensor, negatives: Tensor, scale: Tensor, slope: bool, impl: str, room: int = 0):
    rows = [scale.new_empty(query.shape[0]) for _ in range(2)]
    return rows[0], rows[1], scale.new_empty(query.shape[0] if slope else 0), query.new_empty(room)


def _setup(ctx, inputs, output) -> None:
    query, positive, negatives, scale, ctx.slope, ctx.impl, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(query, positive, negatives, scale, *output[1:])


def _backward(ctx, upstream: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    query, positive, negatives, scale, lse, slopes, kept = ctx.saved_tensors
    for_query, for_positive, for_negatives = ctx.needs_input_grad[:3]
    upstream = upstream.to(scale.dtype).contiguous()
    wide, other = query.to(scale.dtype), positive.to(scale.dtype)
    pull = (torch.expm1(torch.linalg.vecdot(wide, other) * scale - lse) * upstream * scale)[:, None]
    stats = (lse, upstream, None, None)
    grads = backward(query, negatives, scale, None, *stats, for_query, for_negatives, ctx.impl, kept)
    return (
        grads[0].addcmul_(other, pull).to(query.dtype) if for_query else None,
        (wide * pull).to(positive.dtype) if for_positive else None,
        grads[1].to(negatives.dtype) if for_negatives else None,
        torch.dot(upstream, slopes) if ctx.slope else None,
        None,
        None,
        None,
    )


info_nce_rows.register_autograd(_backward, setup_context=_setup)
