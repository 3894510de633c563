"""What every pretext task promises. A new file in bigssl/objectives is tested here without an edit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bigssl.engine import zero
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Losses, Objective, discover

AT = Progress(0, 100)

TASKS = sorted(discover().items())
each_task = pytest.mark.parametrize(("name", "kind"), TASKS, ids=[name for name, _ in TASKS])


def gradients(objective: Objective, batch: Any) -> tuple[Losses, dict[str, torch.Tensor]]:
    objective.zero_grad()
    losses = objective(batch, AT)
    losses.total.backward()
    return losses, {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}


@each_task
def test_gradients_reach_every_trainable_parameter_and_no_frozen_one(
    name: str, kind: type[Objective], objective: Any, batch: Any
) -> None:
    task = objective(kind, name)
    _, grads = gradients(task, batch(task))
    for parameter_name, parameter in task.named_parameters():
        if parameter.requires_grad:
            assert grads[parameter_name].isfinite().all() and grads[parameter_name].any(), parameter_name
        else:
            assert parameter_name not in grads


@each_task
def test_seed_and_position_fix_the_loss(name: str, kind: type[Objective], objective: Any, batch: Any) -> None:
    first, again = objective(kind, name), objective(kind, name)
    same = first(batch(first), AT).total, again(batch(again), AT).total
    assert torch.equal(*same)
    assert not torch.equal(same[0], first(batch(first, step=1), AT).total)


@each_task
def test_losses_are_reported_beside_their_blind_line(
    name: str, kind: type[Objective], objective: Any, batch: Any
) -> None:
    task = objective(kind, name)
    losses = task(batch(task), AT)
    assert losses.total.shape == () and losses.total.requires_grad
    for path, each in losses.named():
        values = [*each.stats.values()] + [each.total] * bool(path) + [torch.as_tensor(each.blind)]
        assert not any(value.requires_grad for value in values), path
        assert each.blind > 0 and each.unit and each.blind_name, path


@each_task
def test_one_batch_overfits(name: str, kind: type[Objective], objective: Any, batch: Any) -> None:
    task = objective(kind, name)
    data = batch(task)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
    first = task(data, AT).total.item()
    for _ in range(60):
        optimizer.zero_grad()
        losses = task(data, AT)
        losses.total.backward()
        optimizer.step()
    assert losses.total.item() < 0.6 * min(first, float(losses.blind))


@each_task
def test_state_round_trips(name: str, kind: type[Objective], objective: Any, batch: Any) -> None:
    task = objective(kind, name)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    state = copy.deepcopy(task.state_dict())
    other = objective(kind, name)
    other.load_state_dict(state)
    assert torch.equal(other(batch(other), AT).total, task(batch(task), AT).total)


@each_task
def test_the_reference_kernels_give_the_same_loss(
    name: str, kind: type[Objective], objective: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = objective(kind, name)
    data = batch(task)
    losses, grads = gradients(task, data)
    twin = objective(kind, name)
    monkeypatch.setenv("BIGSSL_KERNELS", "reference")
    slow, slow_grads = gradients(twin, data)
    torch.testing.assert_close(losses.total, slow.total)
    for key, grad in slow_grads.items():
        torch.testing.assert_close(grads[key], grad, rtol=1e-4, atol=1e-5, msg=key)


def on_ranks(make: Callable[..., Objective], batch: Callable[..., Any], kind: type[Objective], name: str) -> Any:
    zero.start()
    task = make(kind, name)
    losses, grads = gradients(task, batch(task, rank=dist.get_rank(), world=dist.get_world_size()))
    for grad in grads.values():  # what DDP and DeepSpeed do
        dist.all_reduce(grad)
        grad /= dist.get_world_size()
    total = losses.total.detach()
    dist.all_reduce(total)
    return total / dist.get_world_size(), float(losses.blind), grads, dict(task.named_buffers())


@pytest.mark.distributed
@each_task
def test_two_ranks_are_one_rank(name: str, kind: type[Objective], objective: Any, batch: Any, ranks: Any) -> None:
    task = objective(kind, name)
    losses, grads = gradients(task, batch(task))
    for total, blind, averaged, buffers in ranks(on_ranks, 2, objective, batch, kind, name):
        torch.testing.assert_close(total, losses.total.detach(), rtol=1e-5, atol=1e-5)
        assert blind == pytest.approx(float(losses.blind))
        assert averaged.keys() == grads.keys()
        for key, grad in grads.items():
            scale = grad.abs().max().item()
            # fp32 sums in another order, through BatchNorm and τ = .1; a wrong convention errs by tens of percents
            torch.testing.assert_close(
                averaged[key], grad, rtol=1e-3, atol=4e-3 * scale + 1e-7, msg=lambda text, key=key: f"{key}: {text}"
            )
        for key, value in task.named_buffers():
            torch.testing.assert_close(buffers[key], value, rtol=1e-4, atol=1e-5, msg=key)
