"""The collectives behind `group=`.

Convention of every loss here: the batch is the union of the ranks' rows; each rank returns the same global value, and
the gradient at a local row is W x d(global value)/d(row), so that averaging *parameter* gradients over the ranks, as
DDP and DeepSpeed do, gives exactly the gradient of one process holding the whole batch.

Groups travel as names, because custom operators take no process groups. The functional operators are called by their
registered names: they are the same in every torch since 2.9, whereas their Python wrappers were renamed.
"""

import weakref

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

_asked_once: weakref.WeakSet[ProcessGroup] = weakref.WeakSet()  # groups that pass no numbers from host to host


def group_name(group: ProcessGroup | None) -> str:
    """The name by which operators find the group; "" stands for a single process."""
    return group.group_name if group is not None and group.size() > 1 else ""


def world_size(group: ProcessGroup | None) -> int:
    """The number of ranks, 1 without a group."""
    return 1 if group is None else group.size()


def rank(group: ProcessGroup | None) -> int:
    """This process's place in the group, 0 without one."""
    return 0 if group is None else group.rank()


def resolve(name: str) -> ProcessGroup:
    """The group of that name."""
    return torch._C._distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def gather(value: Tensor, name: str) -> Tensor:
    """[m, ...] on each rank -> [W*m, ...] in rank order; `value` itself for a single process. No gradient."""
    if not name:
        return value
    size = resolve(name).size()
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_gather_into_tensor(value.detach().contiguous(), size, name))


def asks(group: ProcessGroup) -> bool:
    """May the ranks tell one another numbers now? Not where reading them waits for a device, but the first time."""
    if "cpu" in _kinds(group):
        return True
    first = group not in _asked_once
    _asked_once.add(group)
    return first


def gather_numbers(numbers: list[int], value: object, group: ProcessGroup) -> list[list[int]]:
    """The numbers of every rank, equally many; over the CPU, else over the device of `value` if it is the group's."""
    kinds = _kinds(group)
    device = torch.device(kinds[0])
    if device.type != "cpu" and isinstance(value, Tensor) and value.device.type in kinds:
        device = value.device
    together: list[list[int]] = gather(torch.tensor([numbers], device=device), group_name(group)).tolist()
    return together


def _kinds(group: ProcessGroup) -> list[str]:
    """Types of devices whose tensors pass through the group, the CPU first."""
    return sorted((part.split(":")[0] for part in dist.get_backend_config(group).split(",")), key="cpu".__ne__)


def _sum_over_ranks(value: Tensor, name: str) -> Tensor:
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_reduce(value.contiguous(), "sum", name))


@torch.library.custom_op("bigssl_kernels::global_sum", mutates_args=())
def global_sum_op(value: Tensor, name: str, size: int) -> Tensor:
    """Sum over the ranks; the gradient at each rank's value is W x upstream (the convention above)."""
    return _sum_over_ranks(value, name)


@global_sum_op.register_fake
def _(value: Tensor, name: str, size: int) -> Tensor:
    return torch.empty_like(value)


def _keep_size(ctx, inputs, output) -> None:
    _, ctx.name, ctx.size = inputs


global_sum_op.register_autograd(lambda ctx, upstream: (upstream * ctx.size, None, None), setup_context=_keep_size)


def global_sum(value: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum of the ranks' values, with the gradient convention of this module."""
    name = group_name(group)
    return global_sum_op(value, name, world_size(group)) if name else value


@torch.library.custom_op("bigssl_kernels::gather_rows", mutates_args=())
def gather_rows_op(value: Tensor, name: str, size: int, place: int) -> Tensor:
    """Rows of all ranks; the gradient at a row is the sum of what every rank's loss sends it."""
    return gather(value, name)


@gather_rows_op.register_fake
def _(value: Tensor, name: str, size: int, place: int) -> Tensor:
    return value.new_empty((size * value.shape[0], *value.shape[1:]))


def _keep_place(ctx, inputs, output) -> None:
    value, ctx.name, _, ctx.place = inputs
    ctx.rows = value.shape[0]


def _scatter_gradient(ctx, upstream: Tensor) -> tuple[Tensor, None, None, None]:
    total = _sum_over_ranks(upstream, ctx.name)
    return total[ctx.place * ctx.rows : (ctx.place + 1) * ctx.rows], None, None, None


gather_rows_op.register_autograd(_scatter_gradient, setup_context=_keep_place)


def gather_rows(value: Tensor, group: ProcessGroup | None) -> Tensor:
    """Rows of all ranks in rank order, through which gradients flow back. The dense reference uses it."""
    name = group_name(group)
    return gather_rows_op(value, name, group.size(), group.rank()) if name and group is not None else value


def reduce_rows(rows: Tensor, reduction: str, group: ProcessGroup | None, count: Tensor | int) -> Tensor:
    """Per-row losses to what the caller asked for; `count` is the number of rows of the mean, over all ranks."""
    if reduction == "none":
        return rows
    if reduction == "mean" and group is None and not isinstance(count, Tensor):
        return rows.mean()  # one operator fewer each way, which small batches notice
    total = global_sum(rows.sum(), group)
    return total / count if reduction == "mean" else total
