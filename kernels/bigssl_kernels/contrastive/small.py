"""NT-Xent and the CLIP loss of small batches on a CPU, where operators cost more than arithmetic.

The whole matrix of e^s is made once and kept for the backward, which is written out: half the operators of dense torch
under autograd, one product fewer, one exponential for both directions of CLIP. Exponentials need no shift, so the
logits must be known to be small. What a trace, autocast or second derivatives would have to see is left to `_dense`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bigssl_kernels.checks import accumulator, is_concrete
from bigssl_kernels.contrastive import dense
from bigssl_kernels.contrastive.similarity_torch import LOG2_E, UNSHIFTED, logits_of
from bigssl_kernels.dispatch import exact

Sums = tuple[Tensor, Tensor | None]  # of e^s, and of s e^s in base two where the scale wants its gradient


def fits(data: Tensor, scale: Tensor, normalize: bool) -> bool:
    """Whether this module may be used on `data`: rows of length one, a small scale, nothing but plain tensors; and
    more than one pair, whose loss has to be exactly 0."""
    return (
        normalize
        and len(data) > 1
        and is_concrete(data)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and abs(scale.item()) < UNSHIFTED - 1
    )


def unit(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of both, of length one: in their dtype, in the accumulator's; inverse lengths [m, 1], 0 for zeros."""
    rows = torch.cat([first, second])
    wide = rows.to(accumulator(rows.dtype))
    inverse = torch.linalg.vector_norm(wide, dim=1, keepdim=True).reciprocal_()
    inverse.nan_to_num_(nan=float("nan"), posinf=0.0)
    wide = wide * inverse
    return wide.to(rows.dtype), wide, inverse


def powers(rows: Tensor, cols: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in base two, and two to their power."""
    logits = logits_of(rows, cols, scale.item() * LOG2_E).to(scale.dtype)
    return logits, logits.exp2() if scale.requires_grad else logits.exp2_()


def mean(e: Tensor, logits: Tensor, total: Tensor, scale: Tensor, dim: int) -> Tensor:
    """Means of the similarities under the softmax over `dim`."""
    return (e * logits).sum(dim) / (total * (scale.item() * LOG2_E))


def weigh(e: Tensor, row: Tensor, col: Tensor, dtype: torch.dtype) -> Tensor:
    """e_ij (row_i + col_j) in `dtype`."""
    return torch.mul(e, row.unsqueeze(1) + col, out=e.new_empty(e.shape, dtype=dtype))


@exact
def send_back(grad: Tensor, wide: Tensor, inverse: Tensor, pull: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Gradients by both inputs from those by their unit rows, less what positives send each other, weighed by pull."""
    half = len(pull)
    grad[:half].addcmul_(wide[half:], pull.unsqueeze(1), value=-1)
    grad[half:].addcmul_(wide[:half], pull.unsqueeze(1), value=-1)
    radial = torch.linalg.vecdot(grad, wide).unsqueeze_(1)
    return grad.addcmul_(wide, radial, value=-1).mul_(inverse).to(dtype).split(half)


def again(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients as a graph that can be differentiated."""
    first, second, scale = inputs
    rows = loss(first, second, scale, True, None, first.dtype)
    wanted = [value for value in inputs if value.requires_grad]
    grads = iter(torch.autograd.grad(rows, wanted, upstream, create_graph=True))
    return tuple(next(grads) if value.requires_grad else None for value in inputs)


class NTXent(torch.autograd.Function):
    """view1, view2 [N, D], scale [] -> losses of the 2N rows, view1's first."""

    @staticmethod
    def forward(ctx, view1: Tensor, view2: Tensor, scale: Tensor) -> Tensor:
        z, wide, inverse = unit(view1, view2)
        logits, e = powers(z, z, scale)
        total = e.fill_diagonal_(0.0).sum(1)
        positives = torch.linalg.vecdot(*wide.view(2, len(view1), -1))
        slopes = None
        if scale.requires_grad:
            slopes = mean(e, logits, total, scale, 1).view(2, -1).sub_(positives).view(-1)
        ctx.save_for_backward(view1, view2, scale, z, wide, inverse, e, total, slopes)
        return total.log().view(2, -1).sub_(positives.mul_(scale)).view(-1)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        view1, view2, scale, z, wide, inverse, e, total, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(dense.nt_xent, (view1, view2, scale), upstream)
        weight = upstream * scale
        share = weight / total
        grad = product(weigh(e, share, share, z.dtype), z, wide.dtype)
        grads = send_back(grad, wide, inverse, weight.view(2, -1).sum(0), view1.dtype)
        return *grads, None if slopes is None else torch.dot(upstream, slopes)


class Clip(torch.autograd.Function):
    """image, text [N, D], scale [] -> losses of the N pairs."""

    @staticmethod
    def forward(ctx, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        z, wide, inverse = unit(image, text)
        first, second = z.chunk(2)
        logits, e = powers(first, second, scale)
        by_row, by_col = e.sum(1), e.sum(0)
        positives = torch.linalg.vecdot(*wide.chunk(2))
        slopes = None
        if scale.requires_grad:
            slopes = (mean(e, logits, by_row, scale, 1) + mean(e, logits, by_col, scale, 0)) / 2 - positives
        ctx.save_for_backward(image, text, scale, z, wide, inverse, e, by_row, by_col, slopes)
        return by_row.log().add_(by_col.log()).div_(2).sub_(positives.mul_(scale))

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, z, wide, inverse, e, by_row, by_col, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(dense.clip_loss, (image, text, scale), upstream)
        weight = upstream * scale
        half = weight / 2
        weights = weigh(e, half / by_row, half / by_col, z.dtype)
        first, second = z.chunk(2)
        grad = torch.cat([product(weights, second, wide.dtype), product(weights.T, first, wide.dtype)])
        grads = send_back(grad, wide, inverse, weight, image.dtype)
        return *grads, None if slopes is None else torch.dot(upstream, slopes)


@exact
def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left @ right in `dtype`."""
    return (left @ right).to(dtype)
