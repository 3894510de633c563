"""CLIP's learned scale at its cap: a gradient that lowers it moves it, one that raises it does not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bigssl.config.recipe import Recipe
from bigssl.engine import zero
from bigssl.engine.optim import build_optimizer
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Objective, discover

AT = Progress(0, 100)

ABOVE = math.log(100) + 0.05


def clip_with_slope(objective: Any, start: float, monkeypatch: pytest.MonkeyPatch, slope: Any) -> Objective:
    """CLIP whose loss is the scale times `slope()`, so that the sign of the scale's gradient is known."""
    monkeypatch.setattr(
        "bigssl.objectives.clip.clip_loss",
        lambda image, text, scale, group: slope() * scale + 0.0 * (image.sum() + text.sum()),
    )
    task: Objective = objective(discover()["clip"], "clip")
    with torch.no_grad():
        task.log_scale.fill_(start)  # type: ignore[operator, union-attr]
    return task


@pytest.mark.parametrize(("slope", "moves"), [(1.0, True), (-1.0, False)])
@pytest.mark.parametrize("start", [ABOVE, 9.0, 200.0])
def test_above_its_cap_the_scale_moves_only_down(
    start: float, slope: float, moves: bool, objective: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = clip_with_slope(objective, start, monkeypatch, lambda: slope)
    losses = task(batch(task, size=4), AT)
    losses.total.backward()
    assert task.log_scale.grad.item() == pytest.approx(100.0 * slope if moves else 0.0)  # type: ignore[union-attr]
    assert losses.stats["scale"].item() <= 100.0
    assert task.exports()["clip"].tensors["logit_scale"].item() == pytest.approx(100.0)
    assert task.exports()["clip"].tensors["logit_scale"].item() <= 100.0


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_below_its_cap_the_scale_has_the_gradient_of_exp(
    slope: float, objective: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = clip_with_slope(objective, 2.5, monkeypatch, lambda: slope)
    task(batch(task, size=4), AT).total.backward()
    assert task.log_scale.grad.item() == pytest.approx(slope * math.exp(2.5), rel=1e-6)  # type: ignore[union-attr]


def steps_under_zero(objective: Any, batch: Any, stage: int, slopes: tuple[float, float]) -> float:
    """The scale's weight after three steps of AdamW from above its cap."""
    zero.start()
    with pytest.MonkeyPatch.context() as patch:
        task = clip_with_slope(objective, ABOVE, patch, lambda: slopes[dist.get_rank()])
        recipe = Recipe.model_validate({
            "name": "cap", "steps": 3, "objective": {}, "backbones": {"unused": {"type": "resnet"}},
            "data": {"sources": {}},
            "batch": {"size": 8}, "optim": {"lr": 0.01, "clip": 0.0},
            "zero": {"stage": stage, "options": {"stage3_param_persistence_threshold": 0} if stage == 3 else {}},
        })  # fmt: skip
        optimizer = build_optimizer(task, recipe.optim)
        engine = zero.Engine(task, optimizer, recipe, micro=4, accum=1, bf16=False)
        for step in range(3):
            engine.backward(engine(batch(task, rank=dist.get_rank(), world=2, size=8, step=step), AT).total)
            engine.step()
        with zero.gathered([task.log_scale]):  # type: ignore[list-item]
            return task.log_scale.item()  # type: ignore[operator, union-attr]


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_the_sign_that_counts_is_that_of_all_ranks(stage: int, objective: Any, batch: Any, ranks: Any) -> None:
    """Rank 1 alone would decide otherwise: its own gradient has the other sign."""
    lowered = ranks(steps_under_zero, 2, objective, batch, stage, (3.0, -1.0))
    assert lowered == pytest.approx([ABOVE - 0.03] * 2, abs=1e-4)
    assert ranks(steps_under_zero, 2, objective, batch, stage, (-3.0, 1.0)) == pytest.approx([ABOVE] * 2)
