"""Linear cross-entropy in plain torch, in panels of kept rows x classes of bounded size.

Two shapes, both deterministic. `forward` walks over panels of rows: where gradients are wanted at once and their
upstream is known, each panel's logits become its gradient in place, so that nothing is computed twice (6 t H V flops).
`backward` walks over slices of the vocabulary and recomputes their logits (2 t H V more): each slice of the weight's
gradient is written once, from one product over all kept rows, without a wider copy of [V, H].

Shapes of tensors follow the number of kept rows, which the host has to know: on a GPU this costs one sync (the Triton
kernels need none).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bigssl_kernels._checks import accumulator
from bigssl_kernels._linear_ce_terms import Gradients, Options, Statistics, Wanted, slopes

PANEL = 40 << 20  # bytes of logits at a time on a CPU; a GPU needs larger products
PANEL_ELSEWHERE = 160 << 20
CHUNK = 1 << 18  # logits that pass from softmax to gradient while they are in the cache
NARROWEST = 128
FEWEST = 64  # rows below which adding up the weight's gradient costs more than recomputing logits


def _wide_enough(dtype: torch.dtype) -> torch.dtype:
    """float16 cannot hold gradients of logits (1e-8 at 4096 tokens and 30,000 classes): it is computed in float32."""
    return torch.float32 if dtype == torch.float16 else dtype


def _budget(x: Tensor) -> int:
    """Logits in a panel."""
    return (PANEL if x.device.type == "cpu" else PANEL_ELSEWHERE) // x.element_size()


def slices(length: int, longest: int) -> Iterator[slice]:
    """Slices of nearly equal length, none longer than `longest`."""
    count = -(-length // max(longest, 1))
    width = -(-length // max(count, 1))
    return (slice(start, min(start + width, length)) for start in range(0, length, max(width, 1)))


def _products(x: Tensor, weight: Tensor, room: Tensor) -> Tensor:
    """x @ weight.T [t, v] in the dtype of x, written to `room`. A weight of another dtype is cast a slice at a time."""
    panel = room[: len(x)]
    if weight.dtype == x.dtype:
        return torch.mm(x, weight.T, out=panel)
    for piece in _casts(weight):
        panel[:, piece] = x @ weight[piece].to(x.dtype).T
    return panel


def _casts(weight: Tensor) -> Iterator[slice]:
    """Rows of the weight that are cast at a time."""
    return slices(weight.shape[0], max(NARROWEST, (1 << 21) // max(weight.shape[1], 1)))


def _logits(products: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Products of any dtype -> logits in the accumulator's; the same tensor where there is nothing to do."""
    wide = accumulator(products.dtype)
    logits = products.to(wide) if bias is None else products + bias.to(wide)
    return logits if softcap is None else (logits / softcap).tanh_().mul_(softcap)


def _within(labels: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Which labels lie in a slice of the vocabulary, and their columns there [t, 1] (0 for the others)."""
    inside = (labels >= start) & (labels < stop)
    return inside, (labels - start).masked_fill_(~inside, 0)[:, None]


def _blank(rows: int, x: Tensor, details: bool) -> Statistics:
    """Room for the statistics of `rows` tokens."""
    lse, target, total = (x.new_zeros(rows, dtype=accumulator(x.dtype)) for _ in range(3))
    extra = rows if details else 0
    return Statistics(lse, target, total, lse.new_zeros(extra, dtype=torch.int64), lse.new_zeros(extra))


def _measure(logits: Tensor, labels: Tensor, stats: Statistics, rows: slice) -> Tensor:
    """Fill in the statistics of some rows of logits [c, V]; gives back their probabilities."""
    highest, probabilities = logits.amax(1), logits.softmax(1)
    stats.lse[rows] = highest - probabilities.amax(1).log()
    inside, column = _within(labels, 0, logits.shape[1])
    stats.target[rows] = logits.gather(1, column).squeeze(1).masked_fill_(~inside, float("nan"))
    stats.total[rows] = logits.sum(1)
    if len(stats.top):
        stats.top[rows] = logits.argmax(1)
        stats.moment[rows] = (probabilities * logits).sum(1)
    return probabilities


def _differentiate(
    probabilities: Tensor,
    logits: Tensor,
    start: int,
    labels: Tensor,
    by: tuple[Tensor, Tensor, Tensor],
    options: Options,
) -> Tensor:
    """Gradient [c, v] by products from probabilities (overwritten) of the classes from `start` on."""
    of_lse, of_target, of_total = by
    grad = probabilities.mul_(of_lse[:, None])
    if options.label_smoothing:
        grad.add_(of_total[:, None])
    inside, column = _within(labels, start, start + grad.shape[1])
    grad.scatter_add_(1, column, (of_target * inside)[:, None])
    if options.softcap is not None:
        grad.mul_((logits / options.softcap).square_().neg_().add_(1.0))
    return grad


def _panels_suffice(x: Tensor, weight: Tensor) -> bool:
    """Can panels of rows add up the weight's gradient: in one product, or in a dtype that loses nothing?"""
    rows = _budget(x) // weight.shape[0]
    return x.shape[0] <= rows or (rows >= FEWEST and weight.dtype == accumulator(x.dtype))


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    kept: Tensor,
    upstream: Tensor | None,
    options: Options,
    details: bool,
    wanted: Wanted,
) -> tuple[Statistics, Gradients]:
    """Statistics of all tokens and, given the `upstream` of their losses [T], the wanted gradients."""
    index = kept.nonzero().squeeze(1)
    x, labels = hidden[index].to(_wide_enough(options.dtype)), labels[index]
    stats = _blank(len(index), x, details)
    panels = upstream is not None and _panels_suffice(x, weight)
    grad_x, grad_weight, grad_bias = grads = _empty(x, weight, wanted) if panels else (None, None, None)
    given = upstream[index].to(stats.lse.dtype) if upstream is not None else None
    pieces = list(slices(len(index), _budget(x) // weight.shape[0]))
    room = x.new_empty(pieces[0].stop if pieces else 0, len(weight))
    for number, rows in enumerate(pieces):
        panel = _products(x[rows], weight, room)
        for piece in slices(len(panel), CHUNK // weight.shape[0]):
            part = slice(rows.start + piece.start, rows.start + piece.stop)
            logits = _logits(panel[piece], bias, options.softcap)
            probabilities = _measure(logits, labels[part], stats, part)
            if panels and given is not None:
                by = slopes(given[part], stats.lse[part], options)
                panel[piece] = _differentiate(probabilities, logits, 0, labels[part], by, options)
        if panels:
            _multiply(panel, x[rows], weight, number == 0, None if grad_x is None else grad_x[rows], *grads[1:])
    known = 5 if details else 3
    everywhere = Statistics(*(_spread(value, index, len(kept)) for value in stats[:known]), *stats[known:])
    if panels:
        return everywhere, (_finish(grad_x, index, hidden), grad_weight, grad_bias)
    if given is None:
        return everywhere, grads
    by = slopes(given, stats.lse, options)
    return everywhere, _by_slices(hidden, index, x, weight, bias, labels, stats.lse, by, options, wanted)


def _spread(value: Tensor, index: Tensor, tokens: int) -> Tensor:
    return value.new_zeros(tokens).index_copy_(0, index, value)


def _empty(x: Tensor, weight: Tensor, wanted: Wanted) -> Gradients:
    """Room for the gradients of gathered rows, weight and bias; zeros where no row is kept."""
    new, wide = torch.empty if len(x) else torch.zeros, accumulator(x.dtype)
    return (
        new(x.shape, dtype=wide, device=x.device) if wanted.hidden else None,
        new(weight.shape, dtype=weight.dtype, device=x.device) if wanted.weight else None,
        new(weight.shape[:1], dtype=wide, device=x.device) if wanted.bias else None,
    )


def _multiply(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    first: bool,
    grad_x: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None:
    """From the gradient of a panel of logits [t, V] to those of its rows, of the weight and of the bias."""
    if grad_x is not None:
        grad_x.copy_(_times_weight(grad, weight))
    if grad_weight is not None:
        for piece in _casts(weight) if grad_weight.dtype != grad.dtype else (slice(None),):
            _accumulate(grad_weight[piece], grad[:, piece].T, x, first)
    if grad_bias is not None:
        wide = grad.sum(0, dtype=grad_bias.dtype)
        grad_bias.copy_(wide) if first else grad_bias.add_(wide)


def _accumulate(into: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """into = left @ right for the first panel, added for later ones."""
    if into.dtype != left.dtype:
        into.copy_(left @ right) if first else into.add_(left @ right)
    elif first:
        torch.mm(left, right, out=into)
    else:
        into.addmm_(left, right)


def _times_weight(grad: Tensor, weight: Tensor) -> Tensor:
    """grad [t, V] @ weight, a slice of the weight at a time where it has to be cast."""
    if weight.dtype == grad.dtype:
        return grad @ weight
    total = grad.new_zeros(grad.shape[0], weight.shape[1], dtype=accumulator(grad.dtype))
    for piece in _casts(weight):
        total += grad[:, piece] @ weight[piece].to(grad.dtype)
    return total


def _finish(grad_x: Tensor | None, index: Tensor, hidden: Tensor) -> Tensor | None:
    """Gradient of the gathered rows -> gradient of all rows, zero where ignored."""
    if grad_x is None:
        return None
    grad = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
    return grad.index_copy_(0, index, grad_x.to(hidden.dtype))


def backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    kept: Tensor,
    lse: Tensor,
    by: tuple[Tensor, Tensor, Tensor],
    options: Options,
    wanted: Wanted,
) -> Gradients:
    """Gradients, given the logsumexps and the derivatives [T] of a sum over tokens by lse, target and total."""
    index = kept.nonzero().squeeze(1)
    x = hidden[index].to(_wide_enough(options.dtype))
    of_lse, of_target, of_total = (value[index] for value in by)
    return _by_slices(
        hidden, index, x, weight, bias, labels[index], lse[index], (of_lse, of_target, of_total), options, wanted
    )


def _by_slices(
    hidden: Tensor,
    index: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    by: tuple[Tensor, Tensor, Tensor],
    options: Options,
    wanted: Wanted,
) -> Gradients:
    """Logits recomputed in slices of the vocabulary, for kept rows x [t, H] and what belongs to them."""
    grad_x, grad_weight, grad_bias = _empty(x, weight, wanted)
    for number, piece in enumerate(slices(len(weight), max(NARROWEST, _budget(x) // max(len(x), 1)))):
        part = weight[piece].to(x.dtype)
        panel, shift = x @ part.T, None if bias is None else bias[piece]
        total = lse.new_zeros(len(part))
        for rows in slices(len(x), CHUNK // len(part)):
            logits = _logits(panel[rows], shift, options.softcap)
            probabilities = (logits - lse[rows, None]).exp_()
            some = (by[0][rows], by[1][rows], by[2][rows])
            grad = _differentiate(probabilities, logits, piece.start, labels[rows], some, options)
            panel[rows] = grad
            total += grad.sum(0)
        if grad_x is not None:
            grad_x.copy_(panel @ part) if number == 0 else grad_x.add_(panel @ part)
        if grad_weight is not None:
            _accumulate(grad_weight[piece], panel.T, x, True)
        if grad_bias is not None:
            grad_bias[piece] = total
        del panel  # before the next one is made
    return _finish(grad_x, index, hidden), grad_weight, grad_bias
