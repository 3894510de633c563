"""The symmetric image-text loss as one operator: losses of the pairs with their gradients."""

import torch
from torch import Tensor

from bigssl_kernels._dispatch import exact
from bigssl_kernels._distributed import gather
from bigssl_kernels._similarity import backward, forward


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
    if images is None or texts is None:
        by_image, by_text, image_slope, text_slope = forward(image, text, scale, None, True, slope, impl)
    else:
        by_image, _, image_slope, _ = forward(image, texts, scale, None, False, slope, impl)
        by_text, _, text_slope, _ = forward(text, images, scale, None, False, slope, impl)
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
    for_image, for_text = ctx.needs_input_grad[:2]
    half = upstream / 2
    if not ctx.group:
        grads = backward(image, text, scale, None, by_image, half, by_text, half, for_image, for_text, ctx.impl)
    else:
        all_image, all_text, weight = (
            gather(torch.stack([by_image, by_text, half], 1), ctx.group).T.contiguous().unbind()
        )
        grads = (
            backward(image, texts, scale, None, by_image, half, all_text, weight, for_image, False, ctx.impl)[0],
            backward(text, images, scale, None, by_text, half, all_image, weight, for_text, False, ctx.impl)[0],
        )
    pull = (upstream * scale)[:, None]
    if for_image:
        grad_image = grads[0].addcmul_(text.to(pull.dtype), pull, value=-1).to(image.dtype)
    if for_text:
        grad_text = grads[1].addcmul_(image.to(pull.dtype), pull, value=-1).to(text.dtype)
    if ctx.slope:
        grad_scale = torch.dot(upstream, slopes)
    return grad_image, grad_text, None, None, grad_scale, None, None, None


clip_rows.register_autograd(_backward, setup_context=_setup)
