"""The gradients of several losses by the same weights, before the one backward pass of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigssl import distributed

Gradients = list[Tensor | None]


def are_whole(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether each rank holds all of them: at ZeRO-3 it has slices."""
    return not any(hasattr(each, "ds_id") for each in parameters)


def gradients_of(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[Gradients]:
    """Of each loss [], its gradient by each parameter on this rank, None where it does not depend on it. The graph
    stays; no hook of a parameter is called."""
    return [
        list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))
        if loss.requires_grad and parameters else [None] * len(parameters)
        for loss in losses
    ]  # fmt: skip


@torch.no_grad()
def gram(gradients: Sequence[Gradients], like: Tensor) -> Tensor:
    """float64 [K, K]: inner products of the K gradients, each the mean over all ranks. Collective.

    Args:
        gradients: of K losses by the same parameters. like: on whose device the result lies.
    """
    total = like.new_zeros(len(gradients), len(gradients), dtype=torch.float64)
    for column in zip(*gradients, strict=True):
        there = next((each for each in column if each is not None), None)
        if there is None:
            continue
        rows = torch.stack([torch.zeros_like(there) if each is None else each for each in column]).flatten(1).float()
        rows = distributed.all_reduce_sum(rows) / distributed.world()
        total += (rows @ rows.T).double()
    return total


def cosines(products: Tensor) -> tuple[Tensor, Tensor]:
    """Norms float64 [K] and cosines [K, K] (0 with a gradient that is 0), of inner products [K, K]."""
    norms = products.diagonal().clamp(min=0).sqrt()
    lengths = torch.where(norms > 0, norms, torch.inf)
    return norms, (products / lengths[:, None] / lengths).clamp(-1, 1)


class Carried(torch.autograd.Function):
    """A value whose gradients are given: `Carried.apply(value, parameters, *gradients, *parameters)` is `value`, and
    each parameter gets its gradient times that of the value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[:count])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        given = ctx.saved_tensors
        return (None, None, *(None for _ in given), *(each * upstream[0].to(each.dtype) for each in given))


def carrying(value: Tensor, given: Sequence[tuple[nn.Parameter, Tensor]]) -> Tensor:
    """[] `value`, with these gradients in place of its own."""
    parameters, gradients = zip(*given, strict=True)
    carried: Tensor = Carried.apply(value.detach(), len(given), *gradients, *parameters)
    return carried
