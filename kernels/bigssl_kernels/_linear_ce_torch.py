"""Linear cross-entropy in plain torch: panels of kept rows x a slice of the vocabulary, recomputed in the backward.

Slicing the vocabulary, not the rows, writes each slice of the weight's gradient once, from one matrix product over all
kept rows: no accumulation in a narrow dtype and no second copy of [V, H].
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bigssl_kernels._checks import accumulator

PANEL = 1 << 22  # logits of a panel: 16 MiB in float32
NARROWEST = 128


def slices(kept: int, vocabulary: int) -> Iterator[slice]:
    """Slices of the vocabulary whose panels stay within bounds."""
    width = max(NARROWEST, PANEL // max(kept, 1))
    return (slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width))


def _wide_enough(x: Tensor) -> Tensor:
    """float16 cannot hold gradients of logits (1e-8 at 4096 tokens and 30,000 classes): it is computed in float32."""
    return x.float() if x.dtype == torch.float16 else x


def _panel(x: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Logits [t, v] in the accumulator's dtype."""
    logits = (x @ weight.to(x.dtype).T).to(accumulator(x.dtype))
    if bias is not None:
        logits += bias
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _within(labels: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
    """Which labels lie in a slice of the vocabulary, and their columns there (0 for the others)."""
    inside = (labels >= piece.start) & (labels < piece.stop)
    return inside, (labels - piece.start).masked_fill_(~inside, 0)


def rows_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Kept rows x [t, H] -> logsumexp, logit of the label (NaN for a label outside), sum of the logits: [t] each."""
    dtype, x = accumulator(x.dtype), _wide_enough(x)
    lse = x.new_full((x.shape[0],), float("-inf"), dtype=dtype)
    total = torch.zeros_like(lse)
    target = torch.full_like(lse, float("nan"))
    for piece in slices(x.shape[0], weight.shape[0]):
        logits = _panel(x, weight[piece], None if bias is None else bias[piece], softcap)
        inside, column = _within(labels, piece)
        target = torch.where(inside, logits.gather(1, column[:, None]).squeeze(1), target)
        total += logits.sum(1)
        lse = torch.logaddexp(lse, logits.logsumexp(1))
    return lse, target, total


def rows_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    of_lse: Tensor,
    of_target: Tensor,
    of_total: Tensor,
    softcap: float | None,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of sum_t of_lse lse + of_target target + of_total total by x, weight and bias, where wanted.

    The gradient of the weight is in the weight's dtype, every entry rounded once; the others are in the accumulator's.
    """
    dtype, x = accumulator(x.dtype), _wide_enough(x)
    grad_x = x.new_zeros(x.shape, dtype=dtype) if wanted[0] else None
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if wanted[1] else None
    grad_bias = x.new_empty(weight.shape[0], dtype=dtype) if wanted[2] else None
    for piece in slices(x.shape[0], weight.shape[0]):
        part = weight[piece].to(x.dtype)
        logits = _panel(x, part, None if bias is None else bias[piece], softcap)
        steep = None if softcap is None else (logits / softcap).square_().neg_().add_(1.0)
        grad = logits.sub_(lse[:, None]).exp_().mul_(of_lse[:, None]).add_(of_total[:, None])
        inside, column = _within(labels, piece)
        grad.scatter_add_(1, column[:, None], (of_target * inside)[:, None])
        if steep is not None:
            grad *= steep
        if grad_bias is not None:
            grad_bias[piece] = grad.sum(0)
        narrow = grad.to(x.dtype)
        if grad_x is not None:
            grad_x += narrow @ part
        if grad_weight is not None:
            grad_weight[piece] = narrow.T @ x
    return grad_x, grad_weight, grad_bias
