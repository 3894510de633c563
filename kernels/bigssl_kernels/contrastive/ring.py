"""Columns of all ranks without gathering them: blocks travel round a ring, the next one while this one is used.

A rank holds two blocks at a time in place of the whole [M, D].
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from bigssl_kernels.contrastive.similarity import backward, forward
from bigssl_kernels.dispatch import refuse_double_backward
from bigssl_kernels.distributed import resolve


def blocks(block: Tensor, group: ProcessGroup) -> Iterator[tuple[int, Tensor]]:
    """(rank, its block) for every rank, this one first. The next block is in transit while the caller works on one."""
    world, me = group.size(), group.rank()
    onward, origin = (dist.get_global_rank(group, (me + step) % world) for step in (1, -1))
    for step in range(world):
        arriving, transfers = block, []
        if step + 1 < world:
            arriving = torch.empty_like(block)
            transfers = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.isend, block, onward, group),
                    dist.P2POp(dist.irecv, arriving, origin, group),
                ]
            )
        yield (me - step) % world, block
        for transfer in transfers:
            transfer.wait()
        block = arriving


def ring_forward(
    rows: Tensor, cols: Tensor, scale: Tensor, leave_out_own: bool, slope: bool, name: str, impl: str
) -> tuple[Tensor, Tensor]:
    """`similarity.forward` of the rows against the `cols` of all ranks: logsumexps and their slopes by the scale."""
    group = resolve(name)
    lse = scale.new_full((rows.shape[0],), float("-inf"))
    slopes = scale.new_zeros(rows.shape[0] if slope else 0)
    for rank, block in blocks(cols.contiguous(), group):
        own = 0 if leave_out_own and rank == group.rank() else None
        part, _, part_slopes, _ = forward(rows, block, scale, own, False, slope, impl)
        joint = torch.logaddexp(lse, part)
        if slope:
            slopes = torch.exp(lse - joint) * slopes + torch.exp(part - joint) * part_slopes
            slopes = slopes.masked_fill(joint == float("-inf"), 0.0)
        lse = joint
    return lse, slopes


@torch.library.custom_op("bigssl_kernels::ring_backward", mutates_args=())
def ring_backward(
    rows: Tensor,
    cols: Tensor,
    scale: Tensor,
    leave_out_own: bool,
    row_lse: Tensor,
    row_weight: Tensor,
    col_lse: Tensor,
    col_weight: Tensor,
    name: str,
    impl: str,
) -> Tensor:
    """Gradient of `similarity.backward` by the rows, against the `cols` of all ranks; col_lse, col_weight [W * n]."""
    group = resolve(name)
    grad = scale.new_zeros(rows.shape)
    for rank, block in blocks(cols.contiguous(), group):
        own = 0 if leave_out_own and rank == group.rank() else None
        part = slice(rank * cols.shape[0], (rank + 1) * cols.shape[0])
        grad += backward(
            rows, block, scale, own, row_lse, row_weight, col_lse[part], col_weight[part], True, False, impl
        )[0]
    return grad


@ring_backward.register_fake
def _(rows: Tensor, cols: Tensor, scale: Tensor, *_: object) -> Tensor:
    return scale.new_empty(rows.shape)


ring_backward.register_autograd(refuse_double_backward)
