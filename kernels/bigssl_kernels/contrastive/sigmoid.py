"""The pairwise sigmoid loss as one operator: with l_ij = scale * image_i . text_j + bias, a row's loss is
sum_j softplus(l_ij) - l_ii, for softplus(-l) = softplus(l) - l."""

import torch
from torch import Tensor

from bigssl_kernels.contrastive.similarity import within_half_range
from bigssl_kernels.dispatch import exact, module, refuse_double_backward
from bigssl_kernels.distributed import gather
from bigssl_kernels.unit import row_products


@torch.library.custom_op("bigssl_kernels::sigmoid_rows", mutates_args=())
@exact
def sigmoid_rows(
    image: Tensor,
    text: Tensor,
    images: Tensor | None,
    texts: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    slope: bool,
    group: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the images' rows and their derivatives by scale and bias ([0] where not wanted): [n] each.

    Args:
        image, text: [n, D], this rank's towers.
        images, texts: [M, D], those of all ranks in rank order; None for a single process.
        scale, bias: [].
        slope: whether the derivatives by scale and bias are wanted.
        group: name of the process group, "" for a single process.
        impl: "torch" or "triton".
    """
    cols = text if texts is None else texts
    total, by_scale, by_bias = module("sigmoid", impl).forward(image, cols, scale, bias, slope)
    positives = row_products(image, text, scale.dtype)
    losses = total - positives * scale - bias
    return (losses, by_scale - positives, by_bias - 1) if slope else (losses, by_scale, by_bias)


@sigmoid_rows.register_fake
def _(image: Tensor, text: Tensor, images, texts, scale: Tensor, bias: Tensor, slope: bool, group: str, impl: str):
    slopes = [scale.new_empty(image.shape[0] if slope else 0) for _ in range(2)]
    return scale.new_empty(image.shape[0]), slopes[0], slopes[1]


@torch.library.custom_op("bigssl_kernels::sigmoid_backward", mutates_args=())
@exact
def sigmoid_backward(
    rows: Tensor,
    cols: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_weight: Tensor | None,
    col_weight: Tensor | None,
    for_rows: bool,
    for_cols: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of sum_ij (row_weight_i + col_weight_j) softplus(l_ij) by rows [m, D] and cols [n, D].

    Either weight may be absent. In the dtype of the scale; [0] where not wanted.
    """
    peak = None
    if rows.dtype == torch.float16:
        (_, row_weight, _, col_weight), peak = within_half_range(None, row_weight, None, col_weight)
    grads: tuple[Tensor, Tensor] = module("sigmoid", impl).backward(
        rows, cols, scale, bias, row_weight, col_weight, for_rows, for_cols
    )
    return grads if peak is None else (grads[0].mul_(peak), grads[1].mul_(peak))


@sigmoid_backward.register_fake
def _(rows: Tensor, cols: Tensor, scale: Tensor, bias, row_weight, col_weight, for_rows, for_cols, impl):
    return scale.new_empty(rows.shape if for_rows else 0), scale.new_empty(cols.shape if for_cols else 0)


sigmoid_backward.register_autograd(refuse_double_backward)


def _setup(ctx, inputs, output) -> None:
    image, text, images, texts, scale, bias, ctx.slope, ctx.group, ctx.impl = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(image, text, images, texts, scale, bias, *output[1:])


def _backward(ctx, upstream: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    image, text, images, texts, scale, bias, by_scale, by_bias = ctx.saved_tensors
    for_image, for_text = ctx.needs_input_grad[:2]
    upstream = upstream.to(scale.dtype).contiguous()
    if not ctx.group:
        grads = sigmoid_backward(image, text, scale, bias, upstream, None, for_image, for_text, ctx.impl)
    else:
        everyone = gather(upstream, ctx.group)
        grads = (
            sigmoid_backward(image, texts, scale, bias, upstream, None, for_image, False, ctx.impl)[0],
            sigmoid_backward(text, images, scale, bias, None, everyone, for_text, False, ctx.impl)[0],
        )
    pull = (upstream * scale)[:, None]
    return (
        grads[0].addcmul_(text, pull, value=-1).to(image.dtype) if for_image else None,
        grads[1].addcmul_(image, pull, value=-1).to(text.dtype) if for_text else None,
        None,
        None,
        torch.dot(upstream, by_scale) if ctx.slope else None,
        torch.dot(upstream, by_bias) if ctx.slope else None,
        None,
        None,
        None,
    )


sigmoid_rows.register_autograd(_backward, setup_context=_setup)
