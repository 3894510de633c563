"""The symmetric image-text loss as one operator: losses of the pairs with their gradients."""

import torch
from torch import Tensor

from bigssl_kernels._distributed import gather
from bigssl_kernels._similarity import gradient_op, logsumexp


@torch.library.custom_op("bigssl_kernels::clip_rows", mutates_args=())
def clip_rows(
    image: Tensor,
    text: Tensor,
    images: Tensor | None,
    texts: Tensor | None,
    scale: Tensor,
    slope: bool,
    group: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses of the n pairs, both logsumexps, derivatives of the losses by the scale: four vectors [n].

    Args:
        image, text: [n, D], this rank's towers.
        images, texts: [M, D], those of all ranks in rank order; None for a single process.
        scale: [], multiplies the similarities.
        slope: whether the derivative by the scale is wanted ([0] where not).
        group: name of the process group, "" for a single process.
        impl: "torch" or "triton".
    """
    by_image, image_slope = logsumexp(image, text if texts is None else texts, scale, None, slope, impl)
    by_text, text_slope = logsumexp(text, image if images is None else images, scale, None, slope, impl)
    positives = torch.linalg.vecdot(image.to(scale.dtype), text.to(scale.dtype))
    losses = (by_image + by_text) / 2 - positives * scale
    return losses, by_image, by_text, (image_slope + text_slope) / 2 - positives if slope else image_slope


@clip_rows.register_fake
def _(
    image: Tensor,
    text: Tensor,
    images: Tensor | None,
    texts: Tensor | None,
    scale: Tensor,
    slope: bool,
    group: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = [scale.new_empty(image.shape[0]) for _ in range(3)]
    return rows[0], rows[1], rows[2], scale.new_empty(image.shape[0] if slope else 0)


def _setup(ctx, inputs, output) -> None:
    image, text, images, texts, scale, ctx.slope, ctx.group, ctx.impl = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(image, text, images, texts, scale, *output[1:])


def _backward(ctx, upstream: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    image, text, images, texts, scale, by_image, by_text, slopes = ctx.saved_tensors
    grad_image = grad_text = grad_scale = None
    upstream = upstream.to(scale.dtype).contiguous()
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        half = upstream / 2
        stats = gather(torch.stack([by_image, by_text, half], 1), ctx.group).T.contiguous()
        pull = (upstream * scale)[:, None]
    if ctx.needs_input_grad[0]:
        cols = text if texts is None else texts
        grad = gradient_op(image, cols, scale, None, by_image, half, stats[1], stats[2], ctx.impl)
        grad_image = grad.addcmul_(text.to(grad.dtype), pull, value=-1).to(image.dtype)
    if ctx.needs_input_grad[1]:
        cols = image if images is None else images
        grad = gradient_op(text, cols, scale, None, by_text, half, stats[0], stats[2], ctx.impl)
        grad_text = grad.addcmul_(image.to(grad.dtype), pull, value=-1).to(text.dtype)
    if ctx.slope:
        grad_scale = torch.dot(upstream, slopes)
    return grad_image, grad_text, None, None, grad_scale, None, None, None


clip_rows.register_autograd(_backward, setup_context=_setup)
