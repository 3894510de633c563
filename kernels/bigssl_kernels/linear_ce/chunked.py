"""Linear cross-entropy in plain torch, in panels of kept rows x classes of bounded size.

Two shapes, both deterministic. `forward` walks over panels of rows: where gradients are wanted at once and their
upstream is known, each panel's logits become its gradient in place, so that nothing is computed twice (6 t H V flops).
`backward` walks over slices of the vocabulary and recomputes their logits (2 t H V more): each slice of the weight's
gradient is written once, from one product over all kept rows, without a wider copy of [V, H]. Slices add up in the
gradient by hidden, with 8 bits more than it has (`wide.py`).

Shapes of tensors follow the number of kept rows, which the host has to know: on a GPU this costs one sync (the Triton
kernels need none).
"""

import torch
from torch import Tensor

from bigssl_kernels.checks import accumulator
from bigssl_kernels.linear_ce import wide as wide_sum
from bigssl_kernels.linear_ce.panels import NARROWEST, casts, room_for, slices
from bigssl_kernels.linear_ce.terms import Gradients, Options, Problem, Statistics, Wanted, slopes

PANEL = 38 << 20  # bytes of logits at a time on a CPU; a GPU needs larger products
PANEL_ELSEWHERE = 160 << 20
LIMIT = 224 << 20  # bytes of logits together with what else grows with kept rows x features
CHUNK = 1 << 21  # logits that pass from softmax to gradient at a time: in the cache, and enough to share among threads
ADDED = 1 << 20  # entries of the gradient by hidden that are added up at a time
NOBODY = torch.iinfo(torch.int64).min  # no class, and no label
FEWEST = 64  # rows below which adding up the weight's gradient costs more than recomputing logits


def _wide_enough(dtype: torch.dtype) -> torch.dtype:
    """float16 cannot hold gradients of logits (1e-8 at 4096 tokens and 30,000 classes): it is computed in float32."""
    return torch.float32 if dtype == torch.float16 else dtype


def _budget(x: Tensor, taken: int = 0) -> int:
    """Logits in a panel, `taken` bytes being in use beside it."""
    panel = PANEL if x.device.type == "cpu" else PANEL_ELSEWHERE
    return min(panel, max(LIMIT - taken, panel // 4)) // x.element_size()


def _kept_rows(given: Problem) -> tuple[Tensor, Tensor]:
    """Numbers of the kept rows [t], and their hidden states [t, H] in the dtype of products."""
    index, dtype = given.kept.nonzero().squeeze(1), _wide_enough(given.options.dtype)
    return index, (given.hidden if len(index) == len(given.kept) else given.hidden[index]).to(dtype)


def _products(x: Tensor, weight: Tensor, room: Tensor) -> Tensor:
    """x @ weight.T [t, v] in the dtype of x, written to `room`. A weight of another dtype is cast a slice at a time."""
    panel = room[: len(x)]
    if weight.dtype == x.dtype:
        return torch.mm(x, weight.T, out=panel)
    for piece in casts(weight):
        torch.mm(x, weight[piece].to(x.dtype).T, out=panel[:, piece])
    return panel


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


def _measure(
    logits: Tensor, labels: Tensor, stats: Statistics, rows: slice, smoothed: bool, biased: bool
) -> Tensor:
    """Fill in the statistics of some rows of logits [c, V]; gives back their probabilities."""
    highest, probabilities = logits.amax(1), logits.softmax(1)
    stats.lse[rows] = highest - probabilities.amax(1).log()
    inside, column = _within(labels, 0, logits.shape[1])
    stats.target[rows] = logits.gather(1, column).squeeze(1).masked_fill_(~inside, float("nan"))
    if smoothed:
        stats.total[rows] = logits.sum(1)
    if len(stats.top):
        stats.top[rows] = _top(logits, stats.target[rows] == highest)
        # 0 x -inf would be NaN: a class that the bias excludes adds 0
        finite = logits.clamp_min(torch.finfo(logits.dtype).min) if biased else logits
        stats.moment[rows] = (probabilities[:, None] @ finite[:, :, None]).flatten()
    return probabilities


def _top(logits: Tensor, labelled: Tensor) -> Tensor:
    """First classes of the largest logits, int64 [c], where the label has such a logit; elsewhere nobody asks, and a
    search costs as much as the softmax."""
    found = torch.full_like(labelled, NOBODY, dtype=torch.int64)
    found[labelled] = logits[labelled].argmax(1)
    return found


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


def forward(given: Problem, upstream: Tensor | None, details: bool, wanted: Wanted) -> tuple[Statistics, Gradients]:
    """Statistics of all tokens and, given the `upstream` of their losses [T], the wanted gradients."""
    index, x = _kept_rows(given)
    if upstream is not None:
        upstream = upstream[index].to(accumulator(x.dtype))
    at_once = upstream is not None and _panels_suffice(x, given.weight)
    labels = given.labels[index]
    stats, grads = _by_rows(given, index, x, labels, upstream if at_once else None, details, wanted)
    known = 5 if details else 3
    everywhere = Statistics(*(_spread(value, index, len(given.kept)) for value in stats[:known]), *stats[known:])
    if upstream is not None and not at_once:
        by = slopes(upstream, stats.lse, given.options)
        grads = _by_slices(given, index, x, labels, stats.lse, by, wanted)
    return everywhere, grads


def _by_rows(
    given: Problem,
    index: Tensor,
    x: Tensor,
    labels: Tensor,
    upstream: Tensor | None,
    details: bool,
    wanted: Wanted,
) -> tuple[Statistics, Gradients]:
    """Statistics of kept rows x [t, H] and, given the `upstream` of each, the wanted gradients, panel by panel."""
    weight, bias, options = given.weight, given.bias, given.options
    stats = _blank(len(index), x, details)
    grads = _empty(given, x, wanted) if upstream is not None else (None, None, None)
    pieces = list(slices(len(index), _budget(x) // weight.shape[0]))
    room = room_for(x, pieces[0].stop if pieces else 0, len(weight))
    for number, rows in enumerate(pieces):
        panel = _products(x[rows], weight, room)
        for piece in slices(len(panel), CHUNK // weight.shape[0]):
            part = slice(rows.start + piece.start, rows.start + piece.stop)
            logits = _logits(panel[piece], bias, options.softcap)
            smoothed, biased = options.label_smoothing > 0, bias is not None
            probabilities = _measure(logits, labels[part], stats, part, smoothed, biased)
            if upstream is not None:
                by = slopes(upstream[part], stats.lse[part], options)
                panel[piece] = _differentiate(probabilities, logits, 0, labels[part], by, options)
        if upstream is not None:
            if grads[0] is not None:
                grads[0].index_copy_(0, index[rows], _times_weight(panel, weight).to(grads[0].dtype))
            _multiply(panel, x[rows], weight, number == 0, *grads[1:])
    return stats, grads


def _spread(value: Tensor, index: Tensor, tokens: int) -> Tensor:
    return value.new_zeros(tokens).index_copy_(0, index, value)


def _empty(given: Problem, x: Tensor, wanted: Wanted) -> Gradients:
    """Room for gradients by hidden (zeros), weight and bias (zeros where no row is kept)."""
    new, weight = torch.empty if len(x) else torch.zeros, given.weight
    return (
        torch.zeros_like(given.hidden, memory_format=torch.contiguous_format) if wanted.hidden else None,
        new(weight.shape, dtype=weight.dtype, device=x.device) if wanted.weight else None,
        new(weight.shape[:1], dtype=accumulator(x.dtype), device=x.device) if wanted.bias else None,
    )


def _multiply(
    grad: Tensor, x: Tensor, weight: Tensor, first: bool, grad_weight: Tensor | None, grad_bias: Tensor | None
) -> None:
    """From the gradient of a panel of logits [t, V] to those of the weight and of the bias."""
    if grad_weight is not None:
        for piece in casts(weight) if grad_weight.dtype != grad.dtype else (slice(None),):
            _accumulate(grad_weight[piece], grad[:, piece].T, x, first)
    if grad_bias is not None:
        for piece in casts(weight):  # which are cast here as well, and would not fit the cache as a whole
            wide = grad[:, piece].sum(0, dtype=grad_bias.dtype)
            grad_bias[piece] = wide if first else grad_bias[piece] + wide


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
    for piece in casts(weight):
        total += grad[:, piece] @ weight[piece].to(grad.dtype)
    return total


def backward(given: Problem, lse: Tensor, by: tuple[Tensor, Tensor, Tensor], wanted: Wanted) -> Gradients:
    """Gradients, given the logsumexps and the derivatives [T] of a sum over tokens by lse, target and total."""
    index, x = _kept_rows(given)
    of_lse, of_target, of_total = (value[index] for value in by)
    return _by_slices(given, index, x, given.labels[index], lse[index], (of_lse, of_target, of_total), wanted)


def _by_slices(
    given: Problem,
    index: Tensor,
    x: Tensor,
    labels: Tensor,
    lse: Tensor,
    by: tuple[Tensor, Tensor, Tensor],
    wanted: Wanted,
) -> Gradients:
    """Logits recomputed in slices of the vocabulary, for kept rows x [t, H] and what belongs to them."""
    weight, bias, options = given.weight, given.bias, given.options
    grad_hidden, grad_weight, grad_bias = _empty(given, x, wanted)
    kept = x[:0] if grad_hidden is None else grad_hidden[: len(x)]  # where kept rows add up before they are spread
    low = wide_sum.low_bytes(kept)
    width = max(NARROWEST, _budget(x, low.numel() + _copied(x, given)) // max(len(x), 1))
    room = room_for(x, len(x), min(width, len(weight)))
    for piece in slices(len(weight), width):
        part = weight[piece].to(x.dtype)
        panel, shift = torch.mm(x, part.T, out=room[:, : len(part)]), None if bias is None else bias[piece]
        if grad_bias is not None:
            grad_bias[piece] = 0
        for rows in slices(len(x), CHUNK // len(part)):
            logits = _logits(panel[rows], shift, options.softcap)
            probabilities = (logits - lse[rows, None]).exp_()
            some = (by[0][rows], by[1][rows], by[2][rows])
            grad = _differentiate(probabilities, logits, piece.start, labels[rows], some, options)
            panel[rows] = grad
            if grad_bias is not None:
                grad_bias[piece] += grad.sum(0)
        for rows in slices(len(kept), ADDED // x.shape[1]):
            edges = piece.start == 0, piece.stop == len(weight)
            wide_sum.add(panel[rows] @ part, kept[rows], low[rows], *edges)
        if grad_weight is not None:
            _accumulate(grad_weight[piece], panel.T, x, True)
    if grad_hidden is not None:
        _spread_rows(grad_hidden, index, given.kept)
    return grad_hidden, grad_weight, grad_bias


def _copied(x: Tensor, given: Problem) -> int:
    """Bytes of the kept rows where they are a copy."""
    return 0 if x.data_ptr() == given.hidden.data_ptr() else x.nbytes


def _spread_rows(grad: Tensor, index: Tensor, kept: Tensor) -> None:
    """Gradients of kept rows, which stand first -> each at its place, zero elsewhere. From behind: none is overwritten
    before it has moved, because places only grow."""
    if len(index) == len(kept):
        return
    for rows in reversed(list(slices(len(index), ADDED // max(grad.shape[1], 1)))):
        grad.index_copy_(0, index[rows], grad[rows].clone())
    grad.masked_fill_(~kept[:, None], 0)
