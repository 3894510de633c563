"""Gradient clipping by group, on the gradients that each ZeRO stage is about to hand to the optimizer.

DeepSpeed clips all groups by one norm, so its own clipping is switched off. Ours gives the norm at stage 0 as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bigssl import distributed

EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_


@torch.no_grad()
def clip_gradients(optimizer: Any, stage: int, device: torch.device) -> Tensor:
    """Scale the gradients of each `clip_group` whose norm is above its `clip` (0: never) down to it, in place.

    To be called between the last backward and the step. Collective. Muon's gradients are already its updates at stages
    1 and 2: `check_zero` allows no clipping there.

    Args:
        optimizer: DeepSpeed's; at stage 0 the recipe's own.
        device: where the reduction over ranks is made.

    Returns:
        [] float32 norm of the whole gradient before clipping, over all ranks; not finite where the gradient is not.
    """
    settings = optimizer.param_groups
    limits = {group["clip_group"]: float(group["clip"]) for group in settings}
    gradients: dict[int, list[Tensor]] = {number: [] for number in limits}
    for group, tensors in _gradients(optimizer, stage):
        gradients[settings[group]["clip_group"]] += tensors
    squares = torch.stack([_square(tensors, device) for tensors in gradients.values()])
    if stage:
        distributed.all_reduce_sum(squares)
    most = _limits(tuple(limits[number] or math.inf for number in gradients), device)
    scales = (most / (squares.sqrt() + EPSILON)).clamp(max=1.0)
    scales = torch.where(squares.isfinite(), scales, 1.0)  # NaN would stay in the padding of stage 3's buffers
    for number, scale in zip(gradients, scales, strict=True):
        if limits[number] and gradients[number]:
            torch._foreach_mul_(gradients[number], scale.to(gradients[number][0].device))
    return squares.sum().sqrt()


@cache
def _limits(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Made once: a copy to the device would have the host wait for the backward pass in each step."""
    return torch.tensor(values, device=device)


def _square(tensors: list[Tensor], device: torch.device) -> Tensor:
    """[] sum of the squares of all elements."""
    if not tensors:
        return torch.zeros((), device=device)
    return torch.stack(torch._foreach_norm(tensors, 2, torch.float32)).square().sum().to(device)


def _gradients(optimizer: Any, stage: int) -> Iterator[tuple[int, list[Tensor]]]:
    """(parameter group, this rank's gradients of it), each element once over all ranks (stage 0: on every rank)."""
    if stage == 0:
        for number, group in enumerate(optimizer.param_groups):
            yield number, [p.grad for p in group["params"] if p.grad is not None]
    elif optimizer.cpu_offload if stage < 3 else optimizer.offload_optimizer:
        yield from _on_the_host(optimizer, stage)
    else:
        for number, tensors in optimizer.averaged_gradients.items():
            if tensors is not None:
                yield _group_of(optimizer, stage, number), [tensor for tensor in tensors if tensor is not None]


def _on_the_host(optimizer: Any, stage: int) -> Iterator[tuple[int, list[Tensor]]]:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()  # the copies to the host are not waited for by anybody else yet
    masters = optimizer.single_partition_of_fp32_groups if stage < 3 else optimizer.fp32_partitioned_groups_flat
    for number, master in enumerate(masters):
        if master.grad is not None:
            yield _group_of(optimizer, stage, number), [master.grad]


def _group_of(optimizer: Any, stage: int, number: int) -> int:
    """Stage 3 cuts groups into sub-groups."""
    return int(optimizer.sub_group_to_group_id[number]) if stage == 3 else number
