"""Dropout follows from the samples: the loss and every gradient are the same on two ranks, also recomputed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bigssl.engine import zero
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Objective, discover

AT = Progress(0, 100)

CASES = [(name, {}) for name in sorted(discover())] + [("mlm", {"packing": True})]


def gradients(objective: Objective, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    total = objective(batch, AT).total
    total.backward()
    return total.detach(), {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}


def on_ranks(make: Callable[..., Objective], batch: Callable[..., Any], name: str, options: dict[str, Any]) -> Any:
    zero.start()
    task = make(discover()[name], name, dropping=True, **options)
    total, grads = gradients(task, batch(task, rank=dist.get_rank(), world=dist.get_world_size()))
    for value in [total, *grads.values()]:
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return total, grads


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "options"), CASES, ids=[name + "-packed" * bool(o) for name, o in CASES])
def test_two_ranks_drop_what_one_rank_drops(
    name: str, options: dict[str, Any], objective: Any, batch: Any, crew: Any
) -> None:
    task = objective(discover()[name], name, dropping=True, **options)
    state = torch.get_rng_state()
    total, grads = gradients(task, batch(task))
    assert torch.equal(state, torch.get_rng_state()), "something draws from torch's generator"
    rates = [getattr(m, name, 0) for m in task.modules() for name in ("p", "drop_prob", "dropout")]
    drops = any(isinstance(rate, float) and rate > 0 for rate in rates)  # some networks drop nothing
    assert drops != torch.equal(total, task.eval()(batch(task), AT).total)
    largest = max(grad.abs().max().item() for grad in grads.values())
    for their_total, their_grads in crew(on_ranks, 2, objective, batch, name, options):
        torch.testing.assert_close(their_total, total, rtol=1e-5, atol=1e-5)
        for key, grad in grads.items():
            # fp32 in another order; another mask errs by tens of percents. (A bias before BatchNorm has no gradient.)
            atol = 4e-3 * grad.abs().max().item() + 1e-5 * largest
            torch.testing.assert_close(their_grads[key], grad, rtol=1e-3, atol=atol, msg=key)


def test_parts_and_steps_drop_differently(objective: Any, batch: Any) -> None:
    """The same network, samples and weights, but another step, or another part of a joint loss: another mask."""
    task = objective(discover()["clip"], "clip", dropping=True)
    data = batch(task)
    again, later = task(data, AT).total, task(data | {"sample_seeds": batch(task, step=1)["sample_seeds"]}, AT).total
    assert torch.equal(again, task(data, AT).total) and not torch.equal(again, later)
    joint = objective(discover()["joint"], "joint", dropping=True)
    seeds = [part["sample_seeds"] for part in batch(joint).values()]
    assert len({int(of_part[0]) for of_part in seeds}) == len(seeds) == 3
