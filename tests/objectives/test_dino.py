"""DINO's loss written out crop by crop, what follows the run, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bigssl.config.errors import ConfigError
from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover
from bigssl.objectives.dino import Dino


def softmax(values: list[float]) -> list[float]:
    large = max(values)
    powers = [math.exp(value - large) for value in values]
    return [power / sum(powers) for power in powers]


def cross_entropy(target: list[float], logits: list[float]) -> float:
    return -sum(p * math.log(q) for p, q in zip(target, softmax(logits), strict=True))


def shaken(task: Any) -> Any:
    """With a teacher that is another network than the student."""
    with torch.no_grad():
        for parameter in task.teacher.module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return task


@pytest.mark.parametrize("backbone", ["vit", "resnet"])
def test_every_crop_predicts_what_the_teacher_makes_of_the_other_large_ones(
    backbone: str, objective: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Dino.preset, "backbones", {"image": backbone})
    task = shaken(objective(Dino, "dino"))
    task.assign.centre.copy_(torch.linspace(-0.5, 0.5, 16))
    centre = task.assign.centre.double().tolist()
    data, at = batch(task), Progress(50, 100)
    large = torch.cat([data["view1"], data["view2"]])
    crops = [data["view1"], data["view2"], *data["small"].unbind(1)]
    with torch.no_grad():
        teacher = task.teacher.module.eval()([large]).cosines.double().unflatten(0, (2, -1)).tolist()
        student = [task.student.eval()([crop]).cosines.double().tolist() for crop in crops]  # each crop for itself
    terms = [
        cross_entropy(softmax([(v - c) / 0.07 for v, c in zip(teacher[t][b], centre, strict=True)]),
                      [v / 0.2 for v in student[s][b]])
        for t in range(2) for s in range(4) if s != t for b in range(12)
    ]  # fmt: skip
    task.teacher.module.eval()
    losses = task.eval()(data, at)
    assert losses.total.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    assert losses.views["projections"].shape == (2, 12, 8)


def test_what_is_scheduled_follows_the_run(objective: Any, batch: Any) -> None:
    task = objective(Dino, "dino", first_temperature=0.04, warm=0.5, freeze=0.1)
    data = batch(task)
    heights, moving = [], []
    for step in (0, 9, 10, 25, 50, 99):
        task.zero_grad()
        losses = task(data, Progress(step, 100))
        losses.total.backward()
        heights.append(losses.stats["teacher_temperature"].item())
        moving.append(bool(task.student.head.prototypes.weight.grad.any()))
        assert losses.stats["prototypes_frozen"].item() == (not moving[-1])
    assert heights == pytest.approx([0.04, 0.0454, 0.046, 0.055, 0.07, 0.07])
    assert moving == [False, False, True, True, True, True]


def test_sinkhorn_gives_the_prototypes_equal_shares_of_both_crops(objective: Any, batch: Any) -> None:
    task, seen = objective(Dino, "dino", centring="sinkhorn"), list[Tensor]()
    task.assign.register_forward_hook(lambda module, args, targets: seen.append(targets))
    task.assign.iterations = 500
    task(batch(task), Progress(0, 100))
    torch.testing.assert_close(seen[0].sum(0), torch.full((16,), 24 / 16), rtol=0.05, atol=0)
    assert "assign.centre" not in task.state_dict()


def test_a_backbone_of_one_side_takes_no_small_crops(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    levit = {"type": "levit", "size": 64, "config": {
        "hidden_sizes": [16, 32, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1], "key_dim": [8, 8, 8],
    }}  # fmt: skip
    monkeypatch.setitem(Dino.preset, "backbones", {"image": levit})
    words = "objective.crops.small: value 2, but the backbone is of type levit, which takes pictures of its own side"
    with pytest.raises(ConfigError, match=words):
        objective(discover()["dino"], "dino")
    assert objective(Dino, "dino", crops={"small": 0}).crops.small == 0
