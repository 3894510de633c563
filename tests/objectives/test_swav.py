"""SwAV's loss written out, its queue, and prototypes that stay at length 1."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_dino import cross_entropy

from bigssl.nets.progress import Progress
from bigssl.objectives.swav import Swav

AT = Progress(50, 100)


def shared_out(rows: list[list[float]], epsilon: float) -> list[list[float]]:
    """Three rounds of the paper's Sinkhorn-Knopp: prototypes to one over their number, samples to one over theirs."""
    codes = [[math.exp(value / epsilon) for value in row] for row in rows]
    for _ in range(3):
        sums = [sum(column) * len(column) for column in zip(*codes, strict=True)]
        codes = [[value / total for value, total in zip(row, sums, strict=True)] for row in codes]
        codes = [[value / sum(row) for value in row] for row in codes]
    return codes


def embedded(task: Any, data: Any) -> torch.Tensor:
    """Unit vectors [V, B, dim] of all crops, as one batch of the head's BatchNorm."""
    sides = torch.cat([data["view1"], data["view2"]]), data["small"].transpose(0, 1).flatten(0, 1)
    features = torch.cat([task.backbone.features({"image": each}) for each in sides])
    return F.normalize(task.head(features), dim=1).unflatten(0, (-1, len(data["view1"]))).detach()


def constant(codes: list[list[list[float]]], before: list[float]) -> float:
    """The mean cross-entropy of codes [2][B][K] with those of all other samples of the pass, those `before` and one
    sample of equal shares."""
    total, terms = [seen + sum(row[k] for view in codes for row in view) for k, seen in enumerate(before)], []
    for b in range(len(codes[0])):
        others = [sum_ - codes[0][b][k] - codes[1][b][k] + 1 / len(total) for k, sum_ in enumerate(total)]
        logs = [math.log(value / sum(others)) for value in others]
        terms += [-sum(p * q for p, q in zip(view[b], logs, strict=True)) for view in codes]
    return sum(terms) / len(terms)


def test_each_crop_predicts_the_codes_of_others(objective: Any, batch: Any) -> None:
    """With and without a queue that is full: its embeddings take part in the shares, not in the loss."""
    task = objective(Swav, "swav", queue=24)
    for full in (False, True):
        before = task.frequencies.mass[0].tolist()
        data = batch(task, step=int(full))
        unit, weight = embedded(task, data), task.prototypes.weight.detach()
        scores = (unit.double() @ weight.double().T).tolist()
        beside = [(q.entries.double() @ weight.double().T).tolist() if full else [] for q in task.queues]
        codes = [shared_out(beside[t] + scores[t], 0.03)[len(beside[t]) :] for t in range(2)]
        terms = [cross_entropy(codes[t][b], [v / 0.2 for v in scores[s][b]])
                 for t in range(2) for s in range(3) if s != t for b in range(12)]  # fmt: skip
        losses = task(data, AT)
        assert losses.total.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)
        assert float(losses.blind) == pytest.approx(min(math.log(8), constant(codes, before)), rel=1e-4)
        torch.testing.assert_close(task.queues[1].entries[:12], unit[1], rtol=1e-4, atol=1e-5)
        task(batch(task, step=9), AT)  # the second half of the queue


def test_codes_of_unequal_shares_have_a_better_constant_than_equal_ones(objective: Any, batch: Any) -> None:
    """Which Sinkhorn-Knopp leaves of them: one prototype has most."""
    task = objective(Swav, "swav", queue=0, queue_from=0.15)
    codes = F.one_hot(torch.tensor([0] * 9 + [1] * 3), 8).float()
    task._codes = lambda cosines, beside: codes
    losses = task(batch(task), AT)
    assert float(losses.blind) == pytest.approx(constant([codes.tolist()] * 2, [0.0] * 8), rel=1e-5)
    assert float(losses.blind) < 0.5 * math.log(8)


def test_the_queue_begins_at_its_time_and_counts_once_it_is_full(objective: Any, batch: Any) -> None:
    task = objective(Swav, "swav", queue=24, queue_from=0.2)
    seen = [task(batch(task), Progress(step, 100)).stats["queued"].item() for step in (0, 19, 20, 21, 22)]
    assert seen == [0, 0, 12, 24, 24]
    assert task.most == 24 and objective(Swav, "swav", queue=0, queue_from=0.15).most is None


def test_prototypes_stay_at_length_one_and_are_frozen_at_first(objective: Any, batch: Any) -> None:
    task = objective(Swav, "swav", freeze=0.3)
    (constraint,) = task.constraints()
    (weight,) = constraint.parameters
    assert weight is task.prototypes.weight
    torch.testing.assert_close(weight.detach().norm(dim=1), torch.ones(8))
    torch.testing.assert_close(constraint.function(3 * weight), weight)
    for step, moves in ((0, False), (29, False), (30, True)):
        task.zero_grad()
        task(batch(task), Progress(step, 100)).total.backward()
        assert bool(weight.grad.any()) == moves
