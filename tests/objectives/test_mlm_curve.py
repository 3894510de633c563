"""Masked language modelling learns the same, whichever implementation computes its loss, on however many ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from bigssl import distributed
from bigssl.nets.progress import Progress
from bigssl.objectives.mlm import Mlm

AT = Progress(0, 100)


def curve(objective: Any, batch: Any) -> list[float]:
    """Losses of a few steps of training, each rank on its share of the batch."""
    task, rank, world = objective(Mlm, "mlm"), distributed.rank(), distributed.world()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    losses = []
    for step in range(8):
        loss = task(batch(task, step=step, rank=rank, world=world), AT).total
        optimizer.zero_grad()
        loss.backward()
        for parameter in task.parameters():
            if parameter.grad is not None:
                distributed.all_reduce_sum(parameter.grad).div_(world)
        optimizer.step()
        losses.append(distributed.all_reduce_sum(loss.detach().clone()).item() / world)
    return losses


def on_a_rank(objective: Any, batch: Any) -> list[float]:
    dist.init_process_group("gloo")
    return curve(objective, batch)


@pytest.fixture
def expected(objective: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setenv("BIGSSL_KERNELS", "reference")
    losses = curve(objective, batch)
    assert losses[-1] < losses[0]
    return losses


def test_the_curve_is_the_reference_implementations(
    objective: Any, batch: Any, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGSSL_KERNELS", "torch")
    assert curve(objective, batch) == pytest.approx(expected, rel=1e-4)


@pytest.mark.distributed
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_two_ranks_have_the_curve_of_one(
    ranks: Any, objective: Any, batch: Any, expected: list[float], monkeypatch: pytest.MonkeyPatch, impl: str
) -> None:
    monkeypatch.setenv("BIGSSL_KERNELS", impl)
    for losses in ranks(on_a_rank, 2, objective, batch):
        assert losses == pytest.approx(expected, rel=1e-4)


def test_the_head_is_told_how_many_tokens_are_labelled(objective: Any, batch: Any) -> None:
    task, told = objective(Mlm, "mlm"), []
    task.head.register_forward_pre_hook(lambda module, args: told.append(args[2]))
    data = batch(task)
    loss = task(data, AT).total
    assert told == [(data["labels"] != -100).sum()] and 12 <= told[0] < data["labels"].numel()
    data["labels"] = data["input_ids"]  # more than were counted: loud, not left out
    assert loss.isfinite() and task(data, AT).total.isnan()
