"""BYOL's loss and its blind line, written out sample by sample."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover
from bigssl.objectives.byol import best_constant


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(v * v for v in vector)) or 1.0
    return [v / length for v in vector]


def test_each_view_predicts_what_the_target_makes_of_the_other(objective: Any, batch: Any) -> None:
    task = objective(discover()["byol"], "byol")
    teacher = task.teachers()["target"].module
    with torch.no_grad():
        for parameter in teacher.parameters():  # another network than the online one
            parameter += 0.1 * torch.randn_like(parameter)
    data = batch(task)
    losses = task(data, Progress(0, 10))
    views = torch.cat([data["view1"], data["view2"]])  # one batch for every BatchNorm
    with torch.no_grad():
        predictions = [unit(row) for row in task.predictor(task.online(views)).double().tolist()]
        targets = [unit(row) for row in teacher(views).double().tolist()]
    count, total = len(data["view1"]), 0.0
    for one in range(count):
        for mine, other in ((one, count + one), (count + one, one)):
            total += sum((p - t) ** 2 for p, t in zip(predictions[mine], targets[other], strict=True)) / count
    assert losses.total.item() == pytest.approx(total, rel=1e-5)
    losses.total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(p.grad is not None and p.grad.any() for p in task.parameters() if p.requires_grad)


def test_the_blind_line_is_the_best_constant() -> None:
    """2 − 2|μ|: of targets that are all alike 0; of directions drawn evenly 2, from few samples as from many."""
    generator = torch.Generator().manual_seed(0)
    alike = torch.nn.functional.normalize(torch.ones(9, 5), dim=1)
    assert best_constant(alike).item() == pytest.approx(0, abs=1e-3)
    shifted = torch.randn(40_000, 8, generator=generator) + torch.tensor([1.0] + [0.0] * 7)
    targets = torch.nn.functional.normalize(shifted, dim=1)
    want = 2 - 2 * targets.double().mean(0).norm().item()  # in hindsight, which profits little from so many
    assert best_constant(targets).item() == pytest.approx(want, abs=1e-3)
    squares = [(1 - best_constant(part).item() / 2) ** 2 for part in targets.split(8)]
    assert sum(squares) / len(squares) == pytest.approx((1 - want / 2) ** 2, abs=0.02)
