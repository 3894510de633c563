"""Linear cross-entropy whose vocabulary is spread over the ranks of a group, as in Megatron-LM (Shoeybi et al. 2019).

Each rank holds some rows of the weight and computes their logits for all tokens, which every rank has. What crosses the
network are three numbers a token in the forward and the gradient of the hidden states in the backward.
"""

import torch

from bigssl_kernels.distributed import _sum_over_ranks as sum_over_ranks
from bigssl_kernels.distributed import gather
from bigssl_kernels.linear_ce.terms import Gradients, Problem, Statistics


def shard(classes: int, size: int, place: int) -> tuple[int, int]:
    """First class and end of a rank's shard: ceil(classes / size) rows each, the last fewer, as torch.chunk has."""
    width = -(-classes // size)
    return min(place * width, classes), min((place + 1) * width, classes)


def join(given: Problem, stats: Statistics) -> Statistics:
    """Statistics of the whole vocabulary from those of every shard, the same bits on every rank."""
    labels, options = given.labels, given.options
    target = torch.where((labels >= 0) & (labels < len(given.weight)), stats.target, 0)
    mine = torch.where(given.kept, torch.stack([stats.lse, target, stats.total]), 0)
    parts = gather(mine, options.group).view(-1, *mine.shape)  # [ranks, 3, T]
    inside = (labels >= -options.first) & (labels < options.classes - options.first)
    target = torch.where(inside, parts[:, 1].sum(0), float("nan"))
    return Statistics(parts[:, 0].logsumexp(0), target, parts[:, 2].sum(0), stats.top, stats.moment)


def sum_over_shards(grads: Gradients, given: Problem, dtype: torch.dtype) -> Gradients:
    """Gradients of this rank -> with that by hidden, which every shard adds to, of the whole vocabulary."""
    grad, *rest = grads
    if grad is None or not given.options.group:
        return grads
    return sum_over_ranks(grad.to(dtype), given.options.group), rest[0], rest[1]
