"""VICReg's three terms in loops from the paper, and at states where they are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
from embedded import embeddings_of, one_for_all

from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover

AT = Progress(0, 10)


def terms(z: list[list[float]]) -> tuple[float, float]:
    """v and c of equations 1 to 4: hinge on √(var + 1e-4), squares of covariances of different dimensions over D."""
    count, width = len(z), len(z[0])
    means = [sum(row[d] for row in z) / count for d in range(width)]
    c = [[sum((row[i] - means[i]) * (row[j] - means[j]) for row in z) / (count - 1) for j in range(width)]
         for i in range(width)]  # fmt: skip
    hinge = sum(max(0.0, 1 - math.sqrt(c[d][d] + 1e-4)) for d in range(width)) / width
    return hinge, sum(c[i][j] ** 2 for i in range(width) for j in range(width) if i != j) / width


@pytest.mark.parametrize("dim", [4, 24], ids=["fewer-dimensions-than-samples", "more"])
def test_the_loss_is_its_three_terms(dim: int, objective: Any, batch: Any) -> None:
    task = objective(discover()["vicreg"], "vicreg", dim=dim, invariance=3.0, variance=5.0, covariance=7.0)
    data = batch(task)
    losses = task(data, AT)
    first, second = (z.tolist() for z in embeddings_of(task, task.expander, data))
    pairs = [(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)]
    invariance = sum((a - b) ** 2 for a, b in pairs) / len(pairs)
    (v1, c1), (v2, c2) = terms(first), terms(second)
    assert losses.total.item() == pytest.approx(3 * invariance + 5 * (v1 + v2) / 2 + 7 * (c1 + c2), rel=1e-4)
    assert losses.stats["distance"].item() == pytest.approx(math.sqrt(invariance), rel=1e-4)
    assert losses.stats["covariance"].item() == pytest.approx(math.sqrt((c1 + c2) / 2 / (dim - 1)), rel=1e-3)
    assert losses.spread["embeddings"].item() == pytest.approx(1 - (v1 + v2) / 2, rel=1e-4)


def test_one_embedding_for_all_is_the_blind_line_however_far_from_zero(objective: Any, batch: Any) -> None:
    task = objective(discover()["vicreg"], "vicreg")
    one_for_all(task.expander)
    task.expander.register_forward_hook(lambda module, given, z: z + 5)
    losses = task(batch(task), AT)
    assert losses.total.item() == pytest.approx(24.75) == pytest.approx(losses.blind)
    assert losses.spread["embeddings"].item() == pytest.approx(0.01)
