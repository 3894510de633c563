"""LeJEPA's loss in loops from the paper, SIGReg where it is known, and on two ranks."""

from __future__ import annotations

import cmath
import math
from typing import Any

import numpy as np
import pytest
import torch
from embedded import embeddings_of, one_for_all
from torch import Tensor

from bigssl import distributed
from bigssl.engine import zero
from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover
from bigssl.objectives.lejepa import OF_ONE_POINT, sliced_epps_pulley


def slow(z: np.ndarray, directions: np.ndarray) -> float:
    """Algorithm 1: trapezoidal rule over 17 points from −5 to 5, weighted by the Gaussian, times the samples."""
    points, total = [-5 + 10 * n / 16 for n in range(17)], 0.0
    for a in directions.T:
        values = []
        for t in points:
            empirical = sum(cmath.exp(1j * t * float(a @ row)) for row in z) / len(z)
            values.append(abs(empirical - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2))
        total += len(z) * sum((u + v) / 2 for u, v in zip(values, values[1:], strict=False)) * 10 / 16
    return total / directions.shape[1]


def test_the_loss_is_its_definition(objective: Any, batch: Any) -> None:
    task = objective(discover()["lejepa"], "lejepa", dim=5, directions=3, regularisation=0.2)
    data, at = batch(task), Progress(4, 10)
    losses = task(data, at)
    views = embeddings_of(task, task.projector, data)
    middle = (views[0] + views[1]) / 2
    prediction = sum(((z - middle) ** 2).mean() for z in views) / 2
    directions = task._directions(at, torch.device("cpu"))
    assert directions.norm(dim=0).tolist() == pytest.approx([1] * 3)
    assert not torch.equal(directions, task._directions(Progress(5, 10), torch.device("cpu")))
    normality = sum(slow(z, directions.double().numpy()) for z in views) / 2
    assert losses.total.item() == pytest.approx(0.8 * prediction + 0.2 * normality, rel=1e-4)
    assert losses.stats["sigreg"].item() == pytest.approx(normality, rel=1e-4)


def units(width: int, count: int) -> Tensor:
    drawn = torch.randn(width, count, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(drawn, dim=0)


def test_sigreg_of_a_gaussian_and_of_one_point(objective: Any, batch: Any) -> None:
    """√(2π)(1 − 1/√3) on average whatever the samples; √(2π)(1 − √2 + 1/√3) n; both up to the 17 points."""
    assert pytest.approx(math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3)), abs=1e-3) == OF_ONE_POINT
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    for samples in (64, 1024):
        draws = torch.randn(60, samples, 16, generator=torch.Generator().manual_seed(samples))
        mean = sum(sliced_epps_pulley(z, units(16, 100)).item() for z in draws) / len(draws)
        assert mean == pytest.approx(expected, rel=0.1)
        assert sliced_epps_pulley(3 * draws[0], units(16, 100)).item() > 10 * expected  # as round, of another length
    task = objective(discover()["lejepa"], "lejepa")
    one_for_all(task.projector)
    losses = task(batch(task, size=7), Progress(0, 10))
    assert losses.total.item() == pytest.approx(0.05 * 7 * OF_ONE_POINT) == pytest.approx(losses.blind)
    assert losses.spread["embeddings"].item() < 1e-5


def statistic(z: Tensor) -> tuple[float, Tensor]:
    leaf = z.clone().requires_grad_()
    value = sliced_epps_pulley(leaf, units(6, 9))
    value.backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad


def on_ranks(z: Tensor) -> tuple[float, Tensor]:
    zero.start()
    return statistic(z.chunk(2)[distributed.rank()])


@pytest.mark.distributed
def test_two_ranks_test_the_whole_batch(ranks: Any) -> None:
    z = 2 * torch.randn(14, 6, generator=torch.Generator().manual_seed(0)) + 1
    value, gradient = statistic(z)
    found = ranks(on_ranks, 2, z)
    assert [each for each, _ in found] == pytest.approx([value] * 2, rel=1e-5)
    torch.testing.assert_close(torch.cat([each for _, each in found]) / 2, gradient, rtol=1e-4, atol=1e-6)
