"""Linear cross-entropy on a GPU (or interpreted on the CPU with TRITON_INTERPRET=1), without a word to the host.

Kept tokens are put first in an order made on the device; kernels read how many they are and skip the rest. Where a
panel of logits holds all tokens, or the weight's gradient adds up in its own dtype, `forward` makes panels of tokens x
all classes into gradients in place (6 T H V flops). Everywhere else statistics come from a kernel that writes no
logits, and gradients from panels of all tokens x some classes, recomputed (8 T H V), which add up in the gradient by
hidden with 8 bits more than it has (`wide.py`). Panels and those bits take at most LIMIT bytes up to 2^27
hidden numbers.
"""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from bigssl_kernels.configs import Block
from bigssl_kernels.contrastive.similarity_triton import precision, splits
from bigssl_kernels.linear_ce import fused_kernels as kernels
from bigssl_kernels.linear_ce import wide as wide_sum
from bigssl_kernels.linear_ce.blocks import block_for
from bigssl_kernels.linear_ce.terms import Gradients, Options, Problem, Statistics, Wanted, slopes

PANEL = 128 << 20  # bytes of logits at a time
LIMIT = 240 << 20  # bytes of logits together with the lower bytes of the gradient by hidden
FEWEST = 1024  # tokens of a panel below which adding up the weight's gradient costs more than recomputing logits
ALIGNED = 128  # classes and tokens of a panel, where there are more than one: whole blocks, aligned loads
SOFTMAX_COLS = 4096
KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
HIGHEST = 16384.0  # largest gradient of a float16 logit once scaled; three of its terms stay below 65504


class Ordered(NamedTuple):
    """What every kernel reads. `order` lists tokens, kept ones first; `kept` [] is how many of those."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    order: Tensor
    kept: Tensor
    options: Options

    def constants(self) -> dict[str, Any]:
        """Compile-time arguments of the kernels that make logits."""
        return {
            "BIAS": self.bias is not None,
            "CAP": self.options.softcap is not None,
            "PRECISION": precision(self.options.dtype),
            "KIND": KINDS[self.options.dtype],
        }

    def inputs(self) -> tuple[Tensor, ...]:
        """Their first arguments."""
        bias = self.weight if self.bias is None else self.bias
        return self.hidden, self.weight, bias, self.labels, self.order, self.kept


def _ordered(given: Problem) -> Ordered:
    order = torch.argsort(given.kept, stable=True, descending=True)
    hidden, weight = (value if value.stride(1) == 1 else value.contiguous() for value in given[:2])
    bias = None if given.bias is None else given.bias.contiguous()
    return Ordered(hidden, weight, bias, given.labels.contiguous(), order, given.kept.sum(), given.options)


def _empty_statistics(problem: Ordered, parts: int, details: bool) -> list[Tensor]:
    """Room for logsumexp, target, sum, and with details maximum, its class and moment: [parts, T] each."""
    shape = parts, len(problem.labels)
    extra = shape if details else (1, 0)
    new = problem.hidden.new_empty
    wide = [new(shape, dtype=torch.float32) for _ in range(3)]
    rest = (torch.float32, torch.int32, torch.float32)
    return wide + [new(extra, dtype=dtype) for dtype in rest]


def _statistics(problem: Ordered, details: bool) -> Statistics:
    """From the kernel that writes no logits."""
    hidden, weight, softcap = problem.hidden, problem.weight, problem.options.softcap
    tokens, classes = len(hidden), len(weight)

    def launch(block: Block) -> list[Tensor]:
        parts, span = splits(tokens, classes, block, 1, hidden.device)
        outs = _empty_statistics(problem, parts, details)
        kernels.statistics_kernel[(-(-tokens // block.rows), parts)](
            *problem.inputs(), *outs, tokens, classes, hidden.shape[1], hidden.stride(0), weight.stride(0), span,
            softcap or 1.0, DETAILS=details, **problem.constants(),
            BM=block.rows, BN=block.cols, BK=block.features, num_warps=block.warps, num_stages=block.stages,
        )  # fmt: skip
        return outs

    part_lse, target, total, top, best, moment = launch(
        block_for("ce_statistics", hidden, problem.options.dtype, launch)
    )
    lse = part_lse.logsumexp(0)
    if details:
        winner = top.argmax(0, keepdim=True)
        best = best.gather(0, winner)[0]
        share = torch.exp(part_lse - lse)
        moment = torch.where(share == 0, 0, share * moment).sum(0)  # a part of excluded classes only has no mean
    return Statistics(lse, _or_nan(target.sum(0), problem), total.sum(0), best.flatten(), moment.flatten())


def _or_nan(target: Tensor, problem: Ordered) -> Tensor:
    inside = (problem.labels >= 0) & (problem.labels < len(problem.weight))
    return torch.where(inside, target, float("nan"))


def _panel(
    problem: Ordered,
    panel: Tensor,
    first: tuple[int, int],
    lse: Tensor | None,
    by: tuple[Tensor, ...],
    gain: Tensor | None,
) -> None:
    """Fill a panel [t, v] that begins at kept token and class `first` with logits, or with gradients, given `lse`."""
    hidden, weight, dummy = problem.hidden, problem.weight, problem.kept

    def launch(block: Block) -> None:
        kernels.panel_kernel[(-(-panel.shape[0] // block.rows), -(-panel.shape[1] // block.cols))](
            *problem.inputs(), dummy if lse is None else lse, *(by or 3 * (dummy,)), dummy if gain is None else gain,
            panel, *first, panel.shape[1], panel.stride(0), hidden.shape[1], hidden.stride(0), weight.stride(0),
            problem.options.softcap or 1.0, GRADIENT=lse is not None, GAIN=gain is not None, **problem.constants(),
            BM=block.rows, BN=block.cols, BK=block.features, num_warps=block.warps, num_stages=block.stages,
        )  # fmt: skip

    launch(block_for("ce_panel", hidden, problem.options.dtype, launch))


def _softmax(problem: Ordered, panel: Tensor, first: int, upstream: Tensor, outs: list[Tensor]) -> None:
    """Logits [t, V] -> their gradients in place, and statistics of these tokens into `outs`."""
    lse, target, total, _, best, moment = outs
    options = problem.options
    kernels.softmax_kernel[(panel.shape[0],)](
        panel, problem.labels, problem.order, problem.kept, upstream, lse, target, total, best, moment, first,
        panel.shape[1], panel.stride(0), options.softcap or 1.0, options.z_loss, options.label_smoothing, GRADIENT=True,
        CAP=options.softcap is not None, DETAILS=best.numel() > 0, KIND=KINDS[options.dtype], BN=SOFTMAX_COLS,
        num_warps=8,
    )  # fmt: skip


class Adding(NamedTuple):
    """How a product joins what was there: whether it is added, and where sums are wider than the gradient, between
    which products they are kept so."""

    more: bool  # something is there
    low: Tensor | None = None  # the lower bytes of a wide sum, see wide.py
    again: bool = False  # more will come


def _product(
    problem: Ordered,
    panel: Tensor,
    first: tuple[int, int],
    sides: tuple[Tensor, Tensor],
    by_token: bool,
    gain: Tensor | None,
    adding: Adding,
) -> None:
    """One gradient, `sides[0]`, from that of a panel of logits and what they are a product of, `sides[1]`."""
    (out, right), kind, features = sides, problem.options.dtype, problem.hidden.shape[1]
    rows, dummy = panel.shape[0 if by_token else 1], problem.kept
    wide = adding.low is not None

    def launch(block: Block) -> None:
        kernels.product_kernel[(-(-rows // block.rows), -(-features // block.cols))](
            panel, right, out, adding.low if wide else dummy, problem.order, problem.kept,
            dummy if gain is None else gain, *first, panel.shape[1], panel.stride(0),
            features, right.stride(0), out.stride(0), BY_TOKEN=by_token, ADD=adding.more, READ_LOW=wide and adding.more,
            WRITE_LOW=wide and adding.again, GAIN=gain is not None, PRECISION=precision(kind), KIND=KINDS[kind],
            BM=block.rows, BN=block.cols, BK=block.features, num_warps=block.warps, num_stages=block.stages,
        )  # fmt: skip

    # a launch that adds cannot be repeated; the first of a kind never does
    launch(block_for("ce_product", problem.hidden, kind, None if adding.more else launch))


def _multiply(
    problem: Ordered,
    panel: Tensor,
    first: tuple[int, int],
    grads: Gradients,
    gain: Tensor | None,
    adding: tuple[Adding, Adding],
) -> None:
    """From the gradient of a panel of logits to those of tokens and of classes."""
    if grads[0] is not None:
        _product(problem, panel, first, (grads[0], problem.weight), True, gain, adding[0])
    if grads[1] is not None:
        _product(problem, panel, first, (grads[1], problem.hidden), False, gain, adding[1])
    if grads[2] is not None:
        kernels.columns_kernel[(-(-panel.shape[1] // 128),)](
            panel, grads[2], problem.kept, problem.kept if gain is None else gain, *first, panel.shape[1],
            panel.stride(0), ADD=adding[1].more, GAIN=gain is not None, BM=32, BN=128, num_warps=4,
        )  # fmt: skip


def _empty_gradients(problem: Ordered, wanted: Wanted) -> Gradients:
    """Room for gradients by hidden (zero where ignored), weight and bias."""
    hidden, weight = problem.hidden, problem.weight
    return (
        torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted.hidden else None,
        torch.empty_like(weight, memory_format=torch.contiguous_format) if wanted.weight else None,
        torch.empty(len(weight), dtype=torch.float32, device=weight.device) if wanted.bias else None,
    )


def _zeros(problem: Ordered, wanted: Wanted) -> Gradients:
    first, second, third = (None if grad is None else grad.zero_() for grad in _empty_gradients(problem, wanted))
    return first, second, third


def _aligned(number: int) -> int:
    return -(-number // ALIGNED) * ALIGNED


def _tokens_per_panel(problem: Ordered) -> int:
    """Tokens whose logits become gradients in place, 0 where panels of all tokens x some classes are better."""
    tokens, classes = len(problem.hidden), len(problem.weight)
    fitting = PANEL // (problem.options.dtype.itemsize * _aligned(classes))
    enough = fitting >= tokens or (fitting >= FEWEST and problem.weight.dtype == torch.float32)
    return max(ALIGNED, fitting // ALIGNED * ALIGNED) if enough and problem.options.dtype != torch.float16 else 0


def forward(given: Problem, upstream: Tensor | None, details: bool, wanted: Wanted) -> tuple[Statistics, Gradients]:
    """See `chunked.forward`."""
    problem = _ordered(given)
    if not len(problem.hidden):
        empty = [value[0] for value in _empty_statistics(problem, 1, details)]
        return Statistics(*empty[:3], *empty[4:]), _zeros(problem, wanted)
    rows = _tokens_per_panel(problem)
    if upstream is None or not rows:
        stats = _statistics(problem, details)
        if upstream is None:
            return stats, (None, None, None)
        return stats, _recompute(problem, stats.lse, slopes(upstream, stats.lse, problem.options), wanted)
    return _in_place(problem, upstream, details, wanted, rows)


def _in_place(
    problem: Ordered, upstream: Tensor, details: bool, wanted: Wanted, rows: int
) -> tuple[Statistics, Gradients]:
    """Statistics and gradients from panels of `rows` tokens x all classes."""
    hidden, weight = problem.hidden, problem.weight
    grads = _empty_gradients(problem, wanted)
    outs = [value[0] for value in _empty_statistics(problem, 1, details)]
    shape = min(rows, len(hidden)), _aligned(len(weight))
    room = hidden.new_empty(shape, dtype=problem.options.dtype)[:, : len(weight)]
    for first in range(0, len(hidden), rows):
        panel = room[: len(hidden) - first]
        _panel(problem, panel, (first, 0), None, (), None)
        _softmax(problem, panel, first, upstream, outs)
        _multiply(problem, panel, (first, 0), grads, None, (Adding(False), Adding(first > 0)))
    lse, target, total, _, best, moment = outs
    return Statistics(lse, _or_nan(target, problem), total, best, moment), grads


def backward(given: Problem, lse: Tensor, by: tuple[Tensor, Tensor, Tensor], wanted: Wanted) -> Gradients:
    """See `chunked.backward`."""
    problem = _ordered(given)
    return _recompute(problem, lse, by, wanted) if len(given.hidden) else _zeros(problem, wanted)


def _gain(problem: Ordered, by: tuple[Tensor, Tensor, Tensor]) -> Tensor | None:
    """What float16 gradients of logits, which would vanish below 6e-8, are multiplied with."""
    if problem.options.dtype != torch.float16:
        return None
    order_kept = torch.arange(len(problem.order), device=problem.order.device) < problem.kept
    kept = torch.empty_like(order_kept).scatter_(0, problem.order, order_kept)
    largest = torch.stack([torch.where(kept, value.abs(), 0) for value in by]).max()
    return HIGHEST / torch.where(largest > 0, largest, 1)


def _recompute(problem: Ordered, lse: Tensor, by: tuple[Tensor, Tensor, Tensor], wanted: Wanted) -> Gradients:
    """Gradients from panels of all tokens x some classes."""
    tokens, classes = len(problem.hidden), len(problem.weight)
    gain = _gain(problem, by)
    grads = _empty_gradients(problem, wanted)
    low = None if grads[0] is None else wide_sum.low_bytes(grads[0])
    if low is not None and not low.numel():
        low = None  # the gradient is wide enough itself
    panel_bytes = max(min(PANEL, LIMIT - (0 if low is None else low.numel())), PANEL // 4)
    width = max(1, panel_bytes // (problem.options.dtype.itemsize * tokens * ALIGNED)) * ALIGNED
    width = min(width, _aligned(classes))
    room = problem.hidden.new_empty(tokens, width, dtype=problem.options.dtype)
    for first in range(0, classes, width):
        panel = room[:, : classes - first]
        _panel(problem, panel, (0, first), lse, by, gain)
        adding = Adding(first > 0, low, first + width < classes), Adding(False)
        _multiply(problem, panel, (0, first), grads, gain, adding)
    return grads
