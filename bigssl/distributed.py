"""Ranks, world, and the few collectives that losses and probes use; everything works unchanged in a single process.

Convention of every distributed loss here: each rank returns a value whose mean over ranks is the loss of the whole
batch, so that averaging parameter gradients over ranks (what DDP and DeepSpeed do) is the single-process gradient.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

T = TypeVar("T")


class NoMeeting(RuntimeError):
    """This rank cannot reach the others. The message says what to set."""


def left_alone(error: RuntimeError) -> str:
    """How a collective says that another rank has ended, or "" if `error` says something else."""
    how = r"[Cc]onnection (closed|reset) by peer|Broken pipe|remote process exited|Timed out waiting"
    found = re.search(how, str(error))
    return found.group() if found and active() else ""


def active() -> bool:
    """Whether a process group of more than one rank exists."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def group() -> ProcessGroup | None:
    """The default group for a loss kernel's `group=`, or None where there is nobody to talk to."""
    return dist.group.WORLD if active() else None


def barrier() -> None:
    if active():
        dist.barrier()


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Element-wise maximum over ranks, in place; returns `tensor`."""
    if active():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Element-wise sum over ranks, in place, without gradient; returns `tensor`."""
    if active():
        dist.all_reduce(tensor)
    return tensor


def agree(ok: bool) -> bool:
    """True only if `ok` on every rank."""
    device = "cuda" if active() and dist.get_backend() == "nccl" else "cpu"
    return not bool(all_reduce_max(torch.tensor([0 if ok else 1], device=device)).item())


def from_main(value: T) -> T:
    """Rank 0's `value` (picklable) on every rank."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Each rank's `value` (picklable, small), ranks in order, on every rank."""
    if not active():
        return [value]
    box: list[Any] = [None] * world()
    dist.all_gather_object(box, value)
    return box


@torch.no_grad()
def gather_rows(tensor: Tensor) -> Tensor:
    """[n, ...] on each rank, same n -> [world * n, ...], ranks in order, without gradient."""
    if not active():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """How different the samples of the global batch are: 1 when z points everywhere, 0 when all samples are alike.

    The standard deviation of the unit-length rows, per dimension, its mean over the D dimensions times √D (what
    `transfer/collapse.py: feature_std` says of features, Chen and He 2021, but free of D). Collective, no sync of the
    host: float64 sums of all ranks, which may hold different numbers of rows.

    Args:
        z: [B, D], any float dtype.
    Returns:
        [] float32, the same on every rank.
    """
    rows = torch.nn.functional.normalize(z.detach().double(), dim=1)
    count = rows.new_full((1,), len(rows))
    sums = all_reduce_sum(torch.cat([rows.sum(0), rows.square().sum(0), count]))
    mean, squares = (sums[:-1] / sums[-1]).chunk(2)
    deviation = (squares - mean.square()).clamp(min=0).sqrt()
    return (deviation.mean() * z.shape[1] ** 0.5).float()


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks whose gradient is the sum over ranks of the gradients: d(Σ_k loss_k)/d input."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor.detach().clone())

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return all_reduce_sum(grads[0].contiguous().clone())


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum over ranks, same shape, differentiable in the convention of this module."""
    if not active():
        return tensor
    summed: Tensor = _SumOverRanks.apply(tensor)
    return summed


class _RowsOfAll(torch.autograd.Function):
    """All ranks' rows; the gradient of a rank's own is the sum of what every rank's loss says of them."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        return gather_rows(tensor.detach())

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return all_reduce_sum(grads[0].contiguous().clone()).chunk(world())[rank()]


def rows_of_all(tensor: Tensor) -> Tensor:
    """[n, ...] on each rank, same n -> [world * n, ...], ranks in order, differentiable in the convention of this
    module."""
    if not active():
        return tensor
    gathered: Tensor = _RowsOfAll.apply(tensor)
    return gathered


def global_mean(total: Tensor, everywhere: Tensor) -> Tensor:
    """Mean over all ranks' items from this rank's `total` [] (with gradient) and `everywhere` [], all ranks' items.

    Ranks may hold different numbers of items (masked tokens): the mean over ranks of the returned values is
    Σ total / everywhere. With no item anywhere it is 0, with gradient 0.
    """
    return total * (world() / everywhere.clamp(min=1))
