"""The symmetric image-text loss as one operator: losses of the pairs with their gradients."""

import torch
from torch import Tensor

from bigssl_kernels.contrastive.ring import ring_backward, ring_forward
from bigssl_kernels.contrastive.similarity import backward, forward
from bigssl_kernels.dispatch import exact
from bigssl_kernels.distributed import gather
from bigssl_kernels.unit import row_products


@torch.library.custom_op("bigssl_kernels::clip_rows", mutates_args=())
@exact
def clip_rows(
    image: Tensor,
    text: Tensor,
    images: Tensor | None,
    texts: Tensor | None,
    scale: Tensor,
    slope: bool,
    group: str,
    ring: bool,
    impl: str,
    room: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses of the n pairs, both logsumexps, derivatives of the losses by the scale: four vectors [n]; logits kept.

    Args:
        image, text: [n, D], this rank's towers.
        images, texts: [M, D], those of all ranks in rank order; None for a single process.
        scale: [], multiplies the similarities.
        slope: whether the derivative by the scale is wanted ([0] where not).
        group: name of the process group, "" for a single process.
        ring: the ranks' rows come round a ring; `images` and `texts` are then None.
        impl: "torch" or "triton".
        room: how many logits the backward finds kept (of a single process).
    """
    kept = image.new_empty(room)
    if ring:
        by_image, image_slope = ring_forward(image, text, scale, False, slope, group, impl)
        by_text, text_slope = ring_forward(text, image, scale, False, slope, group, impl)
    elif images is None or texts is None:
        by_image, by_text, image_slope, text_slope = forward(image, text, scale, None, True, slope, impl, kept)
    else:
        by_image, _, image_slope, _ = forward(image, texts, scale, None, False, slope, impl)
        by_text, _, text_slope, _ = forward(text, images, scale, None, False, slope, impl)
    positives = row_products(image, text, scale.dtype)
    losses = (by_image + by_text) / 2 - positives * scale
    slopes = (image_slope + text_slope) / 2 - positives if slope else image_slope
    return losses, by_image, by_text, slopes, kept


@clip_rows.register_fake
def _(
    image: Tensor,
    text: Tensor,
    images: Tensor | None,
    texts: Tensor | None,
    scale: Tensor,
    slope: bool,
    group: str,
    ring: bool,
    impl: str,
    room: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = [scale.new_empty(image.shape[0]) for _ in range(3)]
    return rows[0], rows[1], rows[2], scale.new_empty(image.shape[0] if slope else 0), image.new_empty(room)


def _setup(ctx, inputs, output) -> None:
    image, text, images, texts, scale, ctx.slope, ctx.group, ctx.ring, ctx.impl, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(image, text, images, texts, scale, *output[1:])


def _both_gradients(ctx, half: Tensor, for_image: bool, for_text: bool) -> tuple[Tensor, Tensor]:
    """What the two logsumexps send to each tower; [0] where not wanted."""
    image, text, images, texts, scale, by_image, by_text, _, kept = ctx.saved_tensors
    if not ctx.group:
        return backward(image, text, scale, None, by_image, half, by_text, half, for_image, for_text, ctx.impl, kept)
    all_image, all_text, weight = gather(torch.stack([by_image, by_text, half], 1), ctx.group).T.contiguous().unbind()
    grads = []
    for wanted, rows, cols, everyone, lse, all_lse in (
        (for_image, image, text, texts, by_image, all_text),
        (for_text, text, image, images, by_text, all_image),
    ):
        if not wanted:
            grads.append(scale.new_empty(0))
        elif ctx.ring:
            grads.append(ring_backward(rows, cols, scale, False, lse, half, all_lse, weight, ctx.group, ctx.impl))
        else:
            grads.append(backward(rows, everyone, scale, None, lse, half, all_lse, weight, True, False, ctx.impl)[0])
    return grads[0], grads[1]


def _backward(ctx, upstream: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    image, text, _, _, scale, _, _, slopes, _ = ctx.saved_tensors
    grad_image = grad_text = grad_scale = None
    upstream = upstream.to(scale.dtype).contiguous()
    for_image, for_text = ctx.needs_input_grad[:2]
    half = upstream / 2
    grads = _both_gradients(ctx, half, for_image, for_text)
    pull = (upstream * scale)[:, None]
    if for_image:
        grad_image = grads[0].addcmul_(text, pull, value=-1).to(image.dtype)
    if for_text:
        grad_text = grads[1].addcmul_(image, pull, value=-1).to(text.dtype)
    if ctx.slope:
        grad_scale = torch.dot(upstream, slopes)
    return grad_image, grad_text, None, None, grad_scale, None, None, None, None, None


clip_rows.register_autograd(_backward, setup_context=_setup)
