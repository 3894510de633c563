"""Masked language modelling learns the same, whichever implementation computes its loss, on however many ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bigssl import distributed
from bigssl.data import text
from bigssl.objectives import mlm
from bigssl.objectives.mlm import Mlm, most_masked


def curve(objective: Any, batch: Any) -> list[float]:
    """Losses of a few steps of training, each rank on its share of the batch."""
    task, rank, world = objective(Mlm, "mlm"), distributed.rank(), distributed.world()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    losses = []
    for step in range(8):
        loss = task(batch(task, step=step, rank=rank, world=world)).total
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


def test_the_head_is_told_a_bound_that_holds(objective: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task, told = objective(Mlm, "mlm"), []
    task.head.register_forward_pre_hook(lambda module, args: told.append(args[2]))
    data = batch(task)
    loss = task(data).total
    assert told == [12 * most_masked(16, 0.15)] and (data["labels"] != -100).sum() <= told[0] < data["labels"].numel()
    data["labels"] = data["input_ids"]  # every token: more than masking ever selects
    assert loss.isfinite() and task(data).total.isnan()


def test_masking_beyond_the_bound_is_drawn_again(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task, drawn = objective(Mlm, "mlm"), []
    mask = text.mask_tokens

    def count(*args: Any, **options: Any) -> Any:
        masked, labels = mask(*args, **options)
        drawn.append((labels != -100).sum())
        return masked, labels

    monkeypatch.setattr(mlm, "most_masked", lambda length, ratio: 1)
    monkeypatch.setattr(text, "mask_tokens", count)
    for seed in range(5):
        _, labels = task._mask(np.arange(20, 36), np.random.default_rng(seed))
        assert (labels != -100).sum() == drawn[-1] == 1
    assert max(drawn) > 1


@pytest.mark.parametrize(("length", "ratio", "most"), [(128, 0.15, 44), (512, 0.15, 126), (8, 0.99, 8), (16, 0.15, 11)])
def test_the_bound(length: int, ratio: float, most: int) -> None:
    assert most_masked(length, ratio) == most
    selected = np.random.default_rng(0).binomial(length, ratio, 100_000)
    assert selected.max() <= most
