"""A learned factor on similarities, 1 / temperature: exp of a parameter [1], capped (CLIP, Radford et al. 2021)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bigssl import distributed

MAX_SCALE = 100.0
LEAST_TEMPERATURE = 1 / MAX_SCALE


def log_scale_of(temperature: float) -> nn.Parameter:
    """What `capped_scale` makes 1 / temperature of: [1], as DeepSpeed cannot broadcast a []."""
    return nn.Parameter(torch.tensor([math.log(1 / temperature)]))


def capped_scale(log_scale: Tensor) -> Tensor:
    """[], min(exp(log_scale), 100)."""
    scale: Tensor = CappedExp.apply(log_scale, MAX_SCALE)
    return scale[0]


class CappedExp(torch.autograd.Function):
    """min(exp(x), cap), whose gradient passes at the cap as well where a step along it would lower x.

    With the gradient of `clamp` a scale that one step took beyond the cap would stay there for the rest of the run. The
    sign that counts is that of the gradient over all ranks, since that is the one the optimizer follows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float) -> Tensor:
        value = x.detach().clamp(max=math.log(cap)).exp().clamp(max=cap)  # the first clamp: exp must not overflow
        ctx.save_for_backward(value, x.detach() > math.log(cap))
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        value, beyond = ctx.saved_tensors
        everywhere = distributed.all_reduce_sum(grads[0].detach().clone())
        return grads[0] * value * (~beyond | (everywhere > 0)), None
