"""SimSiam's loss sample by sample, and where its gradient goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from embedded import embeddings_of

from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover
from bigssl.objectives.byol import best_constant


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def test_each_view_predicts_the_other_and_what_is_predicted_gets_no_gradient(objective: Any, batch: Any) -> None:
    task = objective(discover()["simsiam"], "simsiam")
    data = batch(task)
    losses = task(data, Progress(0, 10))
    first, second = embeddings_of(task, task.projector, data)
    with torch.no_grad():
        both = torch.from_numpy(np.concatenate([first, second])).float()
        predicted = task.predictor(both).double().numpy()
    count = len(first)
    total = sum(1 - cosine(predicted[n], second[n]) + 1 - cosine(predicted[count + n], first[n]) for n in range(count))
    assert losses.total.item() == pytest.approx(total / count / 2, rel=1e-5)
    units = [torch.from_numpy(z / np.linalg.norm(z, axis=1, keepdims=True)) for z in (first, second)]
    assert losses.blind.item() == pytest.approx(sum(best_constant(z).item() for z in units) / 4, rel=1e-5)
    assert losses.views["projections"].numpy() == pytest.approx(np.stack([z.numpy() for z in units]), abs=1e-5)

    leaf = torch.from_numpy(np.concatenate([first, second])).float().requires_grad_()
    targets = task._targets(leaf)
    assert not targets.requires_grad and task._targets(leaf).norm(dim=1).allclose(torch.ones(2 * count))
    task.guards()["stop-gradient"]()
    assert task._targets(leaf).requires_grad
