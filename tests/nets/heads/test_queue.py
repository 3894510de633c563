"""A queue is a list of the last K rows of the global batches, wherever they were computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bigssl.engine import zero
from bigssl.nets.heads.queue import Queue

DIM = 3


def batch(step: int, size: int) -> Tensor:
    return torch.randn(size, DIM, generator=torch.Generator().manual_seed(step))


def as_list(queue: Queue) -> list[list[float]]:
    """Oldest first."""
    rows, size = queue.entries.tolist(), len(queue.entries)
    assert queue.filled.sum() == min(int(queue.pushed), size)
    if queue.pushed < size:
        return rows[: int(queue.pushed)]
    first = int(queue.pushed) % size
    return rows[first:] + rows[:first]


@pytest.mark.parametrize(("size", "sizes"), [(7, [2, 3, 4, 1, 5, 7]), (4, [4, 4, 4]), (3, [8, 1, 4, 2]), (9, [2, 2])])
def test_it_is_a_list_of_the_last_rows(size: int, sizes: list[int]) -> None:
    """Also where K is no multiple of the batch, and where a batch is larger than K."""
    queue, slow = Queue(size, DIM), list[list[float]]()
    for step, count in enumerate(sizes):
        rows = batch(step, count)
        queue.push(rows)
        slow = (slow + rows.tolist())[-size:]
        assert as_list(queue) == slow


def test_entries_that_a_loss_was_computed_with_stay() -> None:
    """The backward pass of a loss needs what it saved, though the batch was pushed since. Gradient: their mean."""
    queue = Queue(4, DIM)
    queue.push(batch(0, 4))
    before, query = queue.entries.clone(), batch(1, 4).requires_grad_()
    loss = (query @ queue.entries.T).mean()
    queue.push(query)
    loss.backward()
    torch.testing.assert_close(query.grad, before.mean(0).expand(4, DIM) / 4)
    assert not queue.entries.requires_grad and torch.equal(queue.entries, query.detach())


def test_nothing_is_pushed_in_eval_mode() -> None:
    queue = Queue(4, DIM).eval()
    queue.push(batch(0, 2))
    assert not queue.filled.any() and queue.pushed == 0


def on_ranks(state: dict[str, Tensor], first: int) -> dict[str, Tensor]:
    """Three more steps of 8 samples in 2 passes, as the loader deals them."""
    zero.start()
    rank, world = dist.get_rank(), dist.get_world_size()
    queue = Queue(11, DIM)
    queue.load_state_dict(state)
    for step in range(first, first + 3):
        mine = batch(step, 8)[rank * 8 // world : (rank + 1) * 8 // world]
        for part in (0, 1):
            queue.push(mine[part::2].bfloat16())
    return queue.state_dict()


@pytest.mark.distributed
def test_it_goes_on_over_any_number_of_ranks(ranks: Any) -> None:
    """1, 2, 4 and 1 ranks: the same entries in the same order on all, as if it had always been one."""
    state, slow = Queue(11, DIM).state_dict(), list[list[float]]()
    for number, world in enumerate((1, 2, 4, 1)):
        first, *others = ranks(on_ranks, world, state, 3 * number)
        for other in others:
            assert all(torch.equal(other[name], value) for name, value in first.items())
        state = first
        for step in range(3 * number, 3 * number + 3):
            for part in (0, 1):
                slow = (slow + batch(step, 8)[part::2].bfloat16().float().tolist())[-11:]
    queue = Queue(11, DIM)
    queue.load_state_dict(state)
    assert as_list(queue) == slow and queue.pushed == 96
