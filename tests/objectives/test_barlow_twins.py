"""Barlow Twins' loss in loops from the paper, and at states where it is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from embedded import embeddings_of, one_for_all

from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover

AT = Progress(0, 10)


def slow(first: np.ndarray, second: np.ndarray, redundancy: float) -> float:
    (count, width), total = first.shape, 0.0
    for i in range(width):
        for j in range(width):
            a, b = first[:, i] - sum(first[:, i]) / count, second[:, j] - sum(second[:, j]) / count
            deviations = [(sum(x * x for x in z) / count + 1e-5) ** 0.5 for z in (a, b)]
            c = sum(x * y for x, y in zip(a, b, strict=True)) / count / deviations[0] / deviations[1]
            total += (1 - c) ** 2 if i == j else redundancy * c**2
    return total


@pytest.mark.parametrize("dim", [4, 24], ids=["fewer-dimensions-than-samples", "more"])
def test_the_loss_is_its_definition(dim: int, objective: Any, batch: Any) -> None:
    task = objective(discover()["barlow_twins"], "barlow_twins", dim=dim, redundancy=0.3, scale=0.1)
    data = batch(task)
    losses = task(data, AT)
    first, second = embeddings_of(task, task.projector, data)
    assert losses.total.item() == pytest.approx(0.1 * slow(first, second, 0.3), rel=1e-4)
    assert losses.blind == pytest.approx(0.1 * dim)


def test_known_states(objective: Any, batch: Any) -> None:
    """One embedding for all: D. Views alike whose dimensions are uncorrelated: 0. All dimensions the same: λ D (D − 1).
    """
    task = objective(discover()["barlow_twins"], "barlow_twins", dim=4, redundancy=0.005)
    data = batch(task, size=8)
    one_for_all(task.projector)
    assert task(data, AT).total.item() == pytest.approx(4) == pytest.approx(task(data, AT).blind)
    signs = torch.tensor([[1.0, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]])
    signs = torch.cat([torch.cat([signs, torch.ones(4, 1)], 1), torch.cat([signs, -torch.ones(4, 1)], 1)])
    for made, known in ((signs, 0.0), (signs[:, :1].expand(8, 4), 0.005 * 12)):
        handle = task.projector.register_forward_hook(lambda module, given, z, made=made: z + made.repeat(2, 1))
        assert task(data, AT).total.item() == pytest.approx(known, abs=1e-3)
        handle.remove()
