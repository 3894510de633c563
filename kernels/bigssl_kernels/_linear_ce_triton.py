"""Linear cross-entropy on a GPU (or interpreted on the CPU with TRITON_INTERPRET=1), without a word to the host.

Kept tokens are put first in an order made on the device; kernels read how many they are and skip the rest. Where a
panel of logits holds all tokens, or the weight's gradient adds up in its own dtype, `forward` makes panels of tokens x
all classes into gradients in place (6 T H V flops). Everywhere else statistics come from a kernel that writes no
logits, and gradients from panels of all tokens x some classes, recomputed (8 T H V).

Not run on a GPU so far: interpreted, and compiled ahead of time.
"""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from bigssl_kernels import _linear_ce_triton_kernels as kernels
from bigssl_kernels._linear_ce_blocks import block_for
from bigssl_kernels._linear_ce_terms import Gradients, Options, Statistics, Wanted, slopes
from bigssl_kernels._similarity_triton import precision, splits

PANEL = 128 << 20  # bytes of logits at a time
FEWEST = 1024  # tokens of a panel below which adding up the weight's gradient costs more than recomputing logits
ALIGNED = 128  # classes and tokens of a panel, where there are more than one: whole blocks, aligned loads
SOFTMAX_COLS = 4096
KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
HIGHEST = 16384.0  # largest gradient of a float16 logit once scaled; three of its terms stay below 65504


class Problem(NamedTuple):
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


def _problem(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, kept: Tensor, options: Options
) -> Problem:
    order = torch.argsort(kept, stable=True, descending=True)
    straight = [value if value.stride(1) == 1 else value.contiguous() for value in (hidden, weight)]
    return Problem(
        straight[0], straight[1], None if bias is None else bias.contiguous(), labels.contiguous(), order,
        kept.sum(), options,
    )  # fmt: skip


def _empty_statistics(problem: Problem, parts: int, details: bool) -> list[Tensor]:
    """Room for logsumexp, target, sum, and with details maximum, its class and moment: [parts, T] each."""
    shape = parts, len(problem.labels)
    extra = shape if details else (1, 0)
    new = problem.hidden.new_empty
    wide = [new(shape, dtype=torch.float32) for _ in range(3)]
    rest = (torch.float32, torch.int32, torch.float32)
    return wide + [new(extra, dtype=dtype) for dtype in rest]


def _statistics(problem: Problem, details: bool) -> Statistics:
    """From the kernel that writes no logits."""
    hidden, weight, softcap = problem.hidden, problem.weight, problem.options.softcap
    tokens, classes = len(hidden), len(weight)
    block = block_for("ce_statistics", hidden, problem.options.dtype)
    parts, span = splits(tokens, classes, block, 1, hidden.device)
    outs = _empty_statistics(problem, parts, details)
    kernels.statistics_kernel[(-(-tokens // block.rows), parts)](
        *problem.inputs(), *outs, tokens, classes, hidden.shape[1], hidden.stride(0), weight.stride(0), span,
        softcap or 1.0, DETAILS=details, **problem.constants(),
        BM=block.rows, BN=block.cols, BK=block.features, num_warps=block.warps, num_stages=block.stages,
    )  # fmt: skip
    part_lse, target, total, top, best, moment = outs
    lse = part_lse.logsumexp(0)
    if details:
        winner = top.argmax(0, keepdim=True)
        best = best.gather(0, winner)[0]
        moment = (torch.exp(part_lse - lse) * moment).sum(0)
    return Statistics(lse, _or_nan(target.sum(0), problem), total.sum(0), best.flatten(), moment.flatten())


def _or_nan(target: Tensor, problem: Problem) -> Tensor:
    inside = (problem.labels >= 0) & (problem.labels < len(problem.weight))
    return torch.where(inside, target, float("nan"))


def _panel(
    problem: Problem,
    panel: Tensor,
    first: tuple[int, int],
    lse: Tensor | None,
    by: tuple[Tensor, ...],
    gain: Tensor | None,
) -> None:
    """Fill a panel [t, v] that begins at kept token and class `first` with logits, or with gradients, given `lse`."""
    hidden, weight = problem.hidden, problem.weight
    block = block_for("ce_panel", hidden, problem.options.dtype)
    dummy = problem.kept
    kernels.panel_kernel[(-(-panel.shape[0] // block.rows), -(-panel.shape[1] // block.cols))](
        *problem.inputs(), dummy if lse is None else lse, *(by or 3 * (dummy,)), dummy if gain is None else gain, panel,
        *first, panel.shape[1], panel.stride(0), hidden.shape[1], hidden.stride(0), weight.stride(0),
        problem.options.softcap or 1.0, GRADIENT=lse is not None, GAIN=gain is not None, **problem.constants(),
        BM=block.rows, BN=block.cols, BK=block.features, num_warps=block.warps, num_stages=block.stages,
    )  # fmt: skip


def _softmax(problem: Problem, panel: Tensor, first: int, upstream: Tensor, outs: list[Tensor]) -> None:
    """Logits [t, V] -> their gradients in place, and statistics of these tokens into `outs`."""
    lse, target, total, _, best, moment = outs
    options = problem.options
    kernels.softmax_kernel[(panel.shape[0],)](
        panel, problem.labels, problem.order, problem.kept, upstream, lse, target, total, best, moment, first,
        panel.shape[1], panel.stride(0), options.softcap or 1.0, options.z_loss, options.label_smoothing, GRADIENT=True,
        CAP=options.softcap is not None, DETAILS=best.numel() > 0, KIND=KINDS[options.dtype], BN=SOFTMAX_COLS,
        num_warps=8,
    )  # fmt: skip


def _multiply(
    problem: Problem,
    panel: Tensor,
    first: tuple[int, int],
    grads: Gradients,
    gain: Tensor | None,
    add: tuple[bool, bool],
) -> None:
    """From the gradient of a panel of logits to those of tokens and of classes, added to what is there where told."""
    block = block_for("ce_product", problem.hidden, problem.options.dtype)
    kind, features = problem.options.dtype, problem.hidden.shape[1]
    scale = problem.kept if gain is None else gain
    sides = ((grads[0], problem.weight, panel.shape[0], add[0]), (grads[1], problem.hidden, panel.shape[1], add[1]))
    for by_token, (out, right, rows, more) in zip((True, False), sides, strict=True):
        if out is not None:
            kernels.product_kernel[(-(-rows // block.rows), -(-features // block.cols))](
                panel, right, out, problem.order, problem.kept, scale, *first, panel.shape[1], panel.stride(0),
                features, right.stride(0), out.stride(0), BY_TOKEN=by_token, ADD=more, GAIN=gain is not None,
                PRECISION=precision(kind), KIND=KINDS[kind], BM=block.rows, BN=block.cols, BK=block.features,
                num_warps=block.warps, num_stages=block.stages,
            )  # fmt: skip
    if grads[2] is not None:
        kernels.columns_kernel[(-(-panel.shape[1] // 128),)](
            panel, grads[2], problem.kept, scale, *first, panel.shape[1], panel.stride(0),
            ADD=add[1], GAIN=gain is not None, BM=32, BN=128, num_warps=4,
        )  # fmt: skip


def _empty_gradients(problem: Problem, wanted: Wanted, dtype: torch.dtype) -> Gradients:
    """Room for gradients by hidden (in `dtype`, zero where ignored), weight and bias."""
    hidden, weight = problem.hidden, problem.weight
    return (
        torch.zeros(hidden.shape, dtype=dtype, device=hidden.device) if wanted.hidden else None,
        torch.empty(weight.shape, dtype=weight.dtype, device=weight.device) if wanted.weight else None,
        torch.empty(len(weight), dtype=torch.float32, device=weight.device) if wanted.bias else None,
    )


def _aligned(number: int) -> int:
    return -(-number // ALIGNED) * ALIGNED


def _tokens_per_panel(problem: Problem) -> int:
    """Tokens whose logits become gradients in place, 0 where panels of all tokens x some classes are better."""
    tokens, classes = len(problem.hidden), len(problem.weight)
    fitting = PANEL // (problem.options.dtype.itemsize * _aligned(classes))
    enough = fitting >= tokens or (fitting >= FEWEST and problem.weight.dtype == torch.float32)
    return max(ALIGNED, fitting // ALIGNED * ALIGNED) if enough and problem.options.dtype != torch.float16 else 0


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
    """See `_linear_ce_torch.forward`."""
    problem = _problem(hidden, weight, bias, labels, kept, options)
    if not len(hidden):
        empty = [value[0] for value in _empty_statistics(problem, 1, details)]
        none = [None if grad is None else grad.zero_() for grad in _empty_gradients(problem, wanted, hidden.dtype)]
        return Statistics(*empty[:3], *empty[4:]), (none[0], none[1], none[2])
    rows = _tokens_per_panel(problem)
    if upstream is None or not rows:
        stats = _statistics(problem, details)
        if upstream is None:
            return stats, (None, None, None)
        return stats, _recompute(problem, stats.lse, slopes(upstream, stats.lse, options), wanted)
    grads = _empty_gradients(problem, wanted, hidden.dtype)
    outs = [value[0] for value in _empty_statistics(problem, 1, details)]
    room = hidden.new_empty(min(rows, len(hidden)), _aligned(len(weight)), dtype=options.dtype)[:, : len(weight)]
    for first in range(0, len(hidden), rows):
        panel = room[: len(hidden) - first]
        _panel(problem, panel, (first, 0), None, (), None)
        _softmax(problem, panel, first, upstream, outs)
        _multiply(problem, panel, (first, 0), grads, None, (False, first > 0))
    lse, target, total, _, best, moment = outs
    return Statistics(lse, _or_nan(target, problem), total, best, moment), grads


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
    """See `_linear_ce_torch.backward`."""
    problem = _problem(hidden, weight, bias, labels, kept, options)
    if not len(hidden):
        none = [None if grad is None else grad.zero_() for grad in _empty_gradients(problem, wanted, hidden.dtype)]
        return none[0], none[1], none[2]
    return _recompute(problem, lse, by, wanted)


def _recompute(problem: Problem, lse: Tensor, by: tuple[Tensor, Tensor, Tensor], wanted: Wanted) -> Gradients:
    """Gradients from panels of all tokens x some classes."""
    tokens, classes = len(problem.hidden), len(problem.weight)
    width = max(1, PANEL // (problem.options.dtype.itemsize * tokens * ALIGNED)) * ALIGNED
    width = min(width, _aligned(classes))
    gain = None
    if problem.options.dtype == torch.float16:  # its gradients of logits would vanish below 6e-8
        order_kept = torch.arange(tokens, device=lse.device) < problem.kept
        kept = torch.empty_like(order_kept).scatter_(0, problem.order, order_kept)
        largest = torch.stack([torch.where(kept, value.abs(), 0) for value in by]).max()
        gain = HIGHEST / torch.where(largest > 0, largest, 1)
    grads = _empty_gradients(problem, wanted, torch.float32)
    room = problem.hidden.new_empty(tokens, width, dtype=problem.options.dtype)
    for first in range(0, classes, width):
        panel = room[:, : classes - first]
        _panel(problem, panel, (0, first), lse, by, gain)
        _multiply(problem, panel, (0, first), grads, gain, (first > 0, False))
    return grads
