"""TS2Vec's contrast over all scales of time (Yue et al. 2022, arXiv 2106.10466, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

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
        float32; their means over ranks are those of the global batch.
    """
    scales = list(_scales(first.float(), second.float()))
    world, count = distributed.world(), len(scales)
    weights = torch.cat([first.new_full((a.shape[1],), 1 / a.shape[1], dtype=torch.float32) for a, _ in scales])
    views = [torch.cat(each, 1).transpose(0, 1) for each in zip(*scales, strict=True)]  # [S, B, D]
    everyone = torch.cat([_of_all_ranks(view) for view in views], 1)  # [S, 2N, D]
    size, whole = len(first), len(first) * world
    here = torch.arange(size, device=first.device) + distributed.rank() * size
    instance = _told_apart(torch.cat(views, 1), everyone, torch.cat([here, here + whole]),
                           torch.cat([here + whole, here]), temperature)  # fmt: skip
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


def _over_time(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """[] of [B, T, D] each."""
    steps = torch.arange(first.shape[1], device=first.device)
    both, there = torch.cat([first, second], 1), steps + first.shape[1]
    return _told_apart(both, both, torch.cat([steps, there]), torch.cat([there, steps]), temperature).mean()


def _told_apart(asked: Tensor, known: Tensor, own: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """[G]: of rows [G, M, D] beside [G, K, D], the mean −log softmax at their `positive`, without their `own` place."""
    scores = asked @ known.transpose(1, 2) / temperature
    rows = torch.arange(len(own), device=own.device)
    scores[:, rows, own] = float("-inf")
    return (scores.logsumexp(2) - scores[:, rows, positive]).mean(1)


def _of_all_ranks(view: Tensor) -> Tensor:
    """[S, B, D] of each rank -> [S, N, D]."""
    return distributed.rows_of_all(view.transpose(0, 1).contiguous()).transpose(0, 1)
