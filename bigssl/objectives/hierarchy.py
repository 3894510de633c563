"""TS2Vec's contrast over all scales of time (Yue et al. 2022, arXiv 2106.10466, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl import distributed


class Contrasts(NamedTuple):
    """Two losses, each [] the mean over scales, and what they are where everything is equal."""

    instance: Tensor
    temporal: Tensor
    blind_instance: float
    blind_temporal: float


def hierarchical_contrast(first: Tensor, second: Tensor, temperature: float = 1.0) -> Contrasts:
    """Two views of the same stretches of time, at every scale: all steps, the maxima of each two of them, and so on to
    one. A step's positive is the same step in the other view; its negatives are, of its own series, all other steps of
    both views (temporal), and at its own time those of all other series of all ranks in both views (instance).

    Similarities are dot products, as in the paper. Those of all scales are one product for the instances, and one a
    scale in time: [2T, 2B, 2N] and [B, 2T, 2T] numbers for B samples here of N.

    Args:
        first, second: [B, T, D], the same B on every rank.

    Returns:
        float32, also under autocast; their means over ranks are those of the global batch.
    """
    with torch.autocast(first.device.type, enabled=False):
        return _contrasts(list(_scales(first.float(), second.float())), temperature)


def _contrasts(scales: Sequence[tuple[Tensor, Tensor]], temperature: float) -> Contrasts:
    first = scales[0][0]
    world, count = distributed.world(), len(scales)
    weights = torch.cat([first.new_full((a.shape[1],), 1 / a.shape[1]) for a, _ in scales])
    own = _times(scales)
    size, whole = len(first), len(first) * world
    known = _times(_scales(*map(distributed.rows_of_all, scales[0]))) if distributed.active() else own
    instance = _told_apart(own, known, distributed.rank() * size, temperature)
    times = [_over_time(a, b, temperature) for a, b in scales if a.shape[1] > 1]
    zero = first.new_zeros((), dtype=torch.float32)
    return Contrasts(
        (instance * weights).sum() / count, sum(times, zero) / count, math.log(max(2 * whole - 1, 1)),
        sum(math.log(2 * a.shape[1] - 1) for a, _ in scales) / count,
    )  # fmt: skip


def _scales(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both at one scale after the other."""
    yield first, second
    while first.shape[1] > 1:
        first, second = (F.max_pool1d(each.transpose(1, 2), 2).transpose(1, 2) for each in (first, second))
        yield first, second


def _times(scales: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """[S, 2B, D]: all times of all scales, one view and the other. (Ranks exchange the finest scale alone.)"""
    both = [torch.cat(each, 1) for each in zip(*scales, strict=True)]
    return torch.cat(both).transpose(0, 1)


def _over_time(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """[] of [B, T, D] each."""
    both = torch.cat([first, second], 1)
    return _told_apart(both, both, 0, temperature).mean()


def _told_apart(asked: Tensor, known: Tensor, place: int, temperature: float) -> Tensor:
    """[G]: the mean −log softmax of rows at their positives, without themselves.

    asked: [G, 2M, D], one view and the other. known: [G, 2K, D], the same of K >= M, among which the M asked ones begin
        at `place` of each view.
    """
    half, whole = asked.shape[1] // 2, known.shape[1] // 2
    rows = torch.arange(2 * half, device=asked.device)
    themselves = rows + place + (whole - half) * (rows >= half)
    found: Tensor = _Told.apply(asked, known, themselves, (themselves + whole) % (2 * whole), temperature)
    return found


class _Told(torch.autograd.Function):
    """Keeps one table of numbers, the shares of the softmax, where autograd would keep the scores and make of them, and
    of each that is picked or left out, another table."""

    @staticmethod
    def forward(
        ctx: Any, asked: Tensor, known: Tensor, themselves: Tensor, positives: Tensor, temperature: float
    ) -> Tensor:  # fmt: skip
        places = [each.view(1, -1, 1).expand(len(asked), -1, -1) for each in (themselves, positives)]
        nothing = asked.new_zeros(1, 1, 1)
        scores = torch.baddbmm(nothing, asked, known.transpose(1, 2), beta=0, alpha=1 / temperature)
        right = scores.gather(2, places[1])
        scores.scatter_(2, places[0], float("-inf"))
        sums = scores.logsumexp(2, keepdim=True)
        shares = scores.sub_(sums).exp_()
        ctx.save_for_backward(asked, known, shares, places[1])
        ctx.temperature = temperature
        return (sums - right).mean((1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        asked, known, shares, positives = ctx.saved_tensors
        each = (grads[0] / (asked.shape[1] * ctx.temperature))[:, None, None]
        table = (shares * each).scatter_add_(2, positives, -each.expand(-1, asked.shape[1], 1))
        return table @ known, table.transpose(1, 2) @ asked, None, None, None
