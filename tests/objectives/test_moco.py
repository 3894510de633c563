"""MoCo against loops written from the papers: v2 with its queue (arXiv 2003.04297), v3 without (arXiv 2104.02057)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import contract_runs as runs
import numpy as np
import pytest
import torch
from contract_runs import Cell

from bigssl.config.errors import ConfigError
from bigssl.engine.plan import preflight
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Objective, discover

AT = Progress(0, 100)
MOCO = discover()["moco"]
V3 = {"queue": 0, "predictor": True, "norm": True, "layers": 3, "last_momentum": 1.0, "freeze_patches": True}


def unit(rows: torch.Tensor) -> np.ndarray:
    values = rows.detach().double().numpy()
    return values / np.sqrt((values**2).sum(1, keepdims=True))


def queries_and_keys(task: Any, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        return unit(task.predictor(task.network(pixels))), unit(task.slow.module(pixels))


def loss_of(query: np.ndarray, own: np.ndarray, negatives: list[np.ndarray], temperature: float) -> float:
    """−log of the share of the own key among it and the negatives."""
    positive = math.exp(float(query @ own) / temperature)
    rest = sum(math.exp(float(query @ other) / temperature) for other in negatives)
    return -math.log(positive / (positive + rest))


def is_the_plain_loop(values: dict[str, Any], crew: Any) -> dict[str, Any]:
    """Asserts it of a run in slices on two ranks; the state at the end."""
    ranks = crew(runs.driven, 2, runs.at_cell(values, Cell(3, 0, 2, "fp32")))
    got, want = ranks[0], runs.plain(values)
    got.passes = [{key: (row[key] + other[key]) / 2 for key in row}
                  for row, other in zip(*(rank.passes for rank in ranks), strict=True)]  # fmt: skip
    curve, state, where = runs.distance(got, want, want)
    assert curve <= runs.SAME["fp32"] and state <= runs.KINKS * runs.SAME["fp32"], where
    return want.state


def test_v2_is_its_paper_while_the_queue_fills_and_when_it_is_full(objective: Any, batch: Any) -> None:
    """Three passes of 5 fill a queue of 12 and begin to replace it; places that nothing was put into do not count."""
    task = objective(MOCO, "moco", queue=12, temperature=0.3)
    queue: list[np.ndarray] = []
    for step in range(4):
        data = batch(task, size=5, step=step)
        (queries, _), (_, keys) = (queries_and_keys(task, data[f"view{n}"]) for n in (1, 2))
        negatives = queue or list(keys)  # of the first pass: its own
        wanted = np.mean([loss_of(q, k, negatives, 0.3) for q, k in zip(queries, keys, strict=True)])
        losses = task(data, AT)
        assert losses.total.item() == pytest.approx(wanted, rel=1e-5)
        assert float(losses.blind) == pytest.approx(math.log(1 + len(negatives)), rel=1e-6)
        queue = (queue + list(keys))[-12:]
    assert len(queue) == 12 and task.queue.pushed == 20


def test_v3_is_its_paper(objective: Any, batch: Any) -> None:
    """ctr(q1, k2) + ctr(q2, k1), each 2τ times the cross-entropy over the keys of the batch (algorithm 1)."""
    task = objective(MOCO, "moco", **V3, temperature=0.3)
    data = batch(task, size=5)
    pixels = torch.cat([data["view1"], data["view2"]])  # both views are one batch of a BatchNorm
    queries, keys = queries_and_keys(task, pixels)
    wanted = 0.0
    for q, k in ((queries[:5], keys[5:]), (queries[5:], keys[:5])):
        for i in range(5):
            wanted += 2 * 0.3 * loss_of(q[i], k[i], [k[j] for j in range(5) if j != i], 0.3) / 5
    losses = task(data, AT)
    assert losses.total.item() == pytest.approx(wanted, rel=1e-5)
    assert losses.blind == pytest.approx(4 * 0.3 * math.log(5)) and losses.views["queries"].shape == (2, 5, 8)


@pytest.mark.parametrize("filled", [0, 7, 4096])
def test_everything_equal_costs_ln_of_the_negatives_and_one(filled: int, objective: Any, batch: Any) -> None:
    """ln(K + 1) of a full queue: 8.3180 at 4096."""
    task = objective(MOCO, "moco", queue=4096)
    with torch.no_grad():
        for parameter in (*task.network.projector.parameters(), *task.slow.module.projector.parameters()):
            parameter.fill_(0.0)
        task.network.projector.layers[-1].bias.fill_(1.0)
        task.slow.module.projector.layers[-1].bias.fill_(1.0)
        task.queue.entries[:filled] = 1 / math.sqrt(8)
        task.queue.pushed.fill_(filled)
    losses = task(batch(task, size=6), AT)
    assert losses.total.item() == pytest.approx(math.log((filled or 6) + 1), abs=1e-4)
    assert float(losses.blind) == pytest.approx(math.log((filled or 6) + 1), abs=1e-5)


def test_no_gradient_reaches_keys_or_frozen_patches_and_the_teacher_ends_still(objective: Any, batch: Any) -> None:
    task: Objective = objective(MOCO, "moco", **V3)
    task(batch(task, size=5), AT).total.backward()
    without = {name for name, parameter in task.named_parameters() if parameter.grad is None}
    patches = {f"network.tower.model.embeddings.patch_embeddings.projection.{part}" for part in ("weight", "bias")}
    assert patches <= without and all("patch_embeddings" in name or "pooler" in name for name in without)
    momentum = task.teachers()["slow"].momentum
    assert callable(momentum)
    assert momentum(Progress(0, 10)) == pytest.approx(0.9) and momentum(Progress(10, 10)) == pytest.approx(1.0)


def test_v3_learns_one_batch(objective: Any, batch: Any) -> None:
    """The contract cannot ask this of a queue, in which earlier keys of a repeated sample are negatives."""
    task = objective(MOCO, "moco", **(V3 | {"freeze_patches": False}))
    _, losses = runs.on_one_batch(task, batch(task, size=8))
    assert losses.total.item() < 0.6 * losses.blind


@pytest.mark.distributed
def test_a_queue_with_batch_norm_in_slices_on_two_ranks_is_the_plain_loop(
    recipe: Any, crew: Any, tmp_path: Path
) -> None:
    """The contract sees a vit, which has no statistics of a teacher's own."""
    fields = MOCO.preset["objective"] | {"name": "moco", "source": "shards", "norm": True}
    image = recipe("simclr")["backbones"]
    values = recipe("moco", tmp_path / "run", objective=fields, backbones=image)
    state = is_the_plain_loop(values, crew)
    assert any(key.startswith("teacher slow") and "running" in key for key in state)


def test_it_is_scheduled_where_its_momentum_is(objective: Any) -> None:
    """By which a resume with another number of steps is refused (engine/resume.py)."""
    given = {0.9: False, None: False, 1.0: True}
    assert {last: objective(MOCO, "moco", momentum=0.9, last_momentum=last).scheduled for last in given} == given


@pytest.mark.distributed
def test_v3_in_slices_on_two_ranks_is_the_plain_loop(recipe: Any, crew: Any, tmp_path: Path) -> None:
    """The contract sees the preset, which has a queue."""
    fields = MOCO.preset["objective"] | V3 | {"name": "moco", "source": "shards"}
    values = recipe("moco", tmp_path / "run", objective=fields)
    is_the_plain_loop(values, crew)


def test_what_cannot_be_is_refused_beforehand(recipe: Any, objective: Any, tmp_path: Path) -> None:
    section = {"name": "moco", "source": "shards", "queue": 7}
    values = recipe("moco", tmp_path / "run", objective=section)
    words = ("data.sources.shards.batch: 8 samples a step are 8 that moco compares at a time, more than the 7 that it "
             "can hold; allowed: <= 7, or a longer objective.queue")  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        preflight.plan(runs.validated(values), 1)
    assert str(caught.value) == words
    preflight.plan(runs.validated(values | {"batch": {"size": 8, "accum": 2}}), 1)  # a pass is 4
    with pytest.raises(ConfigError, match="8 that moco compares"):
        preflight.plan(runs.validated(values | {"batch": {"size": 8, "accum": 2, "cached": True}}), 1)
    longer = preflight.plan(runs.validated(values | {"objective": section | {"queue": 4096}}), 1)
    assert len(longer.notes) == 1 and "3078 samples, and moco remembers 4096: earlier" in longer.notes[0]
    with pytest.raises(ConfigError, match=r"^objective.freeze_patches: value true, but backbones.other \(a resnet\)"):
        objective(MOCO, "moco", beside={"other": "resnet"}, backbone="other", freeze_patches=True)
    stages = {"type": "poolformer", "size": 32, "config": {  # which embed patches at each stage anew
        "depths": [1, 1], "hidden_sizes": [8, 16], "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2],
        "padding": [2, 1]}}  # fmt: skip
    with pytest.raises(ConfigError, match=r"\(a poolformer\) has no one projection of patches"):
        objective(MOCO, "moco", beside={"other": stages}, backbone="other", freeze_patches=True)
