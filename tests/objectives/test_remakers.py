"""Of every remaker (bigssl/nets/remaking), by the task that exports it: `pytest tests/objectives -k KIND`"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from contract_runs import DEMO

from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.remaking.base import GREY, Remaker, discover_remakers
from bigssl.objectives.base import discover, exported_heads
from bigssl.transfer.features import read_samples
from bigssl.transfer.inputs import input_of


@pytest.mark.parametrize("kind", discover_remakers())
def test_pictures_are_drawn_again_from_what_is_exported(kind: str, objective: Any) -> None:
    """Settings through JSON and tensors alone: the same pictures, twice the same, other ones with other seeds where
    something is hidden, and nothing changed where nothing is judged; and simple ways that do no worse."""
    tasks = [objective(task, name) for name, task in discover().items() if name == kind]
    assert tasks, f"no task is called {kind}, which the tests would find it by"
    task = tasks[0].eval()
    (head,) = (each for each in exported_heads(task).values() if each.kind == kind)
    model, settings = task.backbone.model, json.loads(json.dumps(head.settings))
    takes = input_of(task.backbone)
    samples = read_samples(DatasetIndex.load(str(DEMO / "emoji" / "val")), 12)
    pictures, seeds = torch.from_numpy(np.stack([takes.view(each)["image"] for each in samples])), torch.arange(5, 17)
    live = next(module for module in task.modules() if isinstance(module, Remaker))
    made = Remaker.of_head(kind, settings, {name: value.clone() for name, value in head.tensors.items()}, model)
    with torch.no_grad():
        first, again, other = (each.remake(model, pictures, s) for each, s in ((live, seeds), (made, seeds),
                                                                                 (made, seeds + 99)))  # fmt: skip
        fresh = Remaker.of_head(kind, settings, None, model).remake(model, pictures, seeds)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(first.judged, fresh.judged) and torch.equal(first.given, fresh.given)
    assert not torch.equal(first.made, fresh.made)
    for drawn in (first.given, first.made):
        assert drawn.dtype == torch.uint8 and drawn.shape == pictures.shape
    assert first.judged.dtype == torch.bool and first.judged.shape == (len(pictures), 1, *pictures.shape[2:])
    assert first.judged.flatten(1).any(1).all(), "of every picture something is judged"
    if not first.judged.all():
        assert not torch.equal(first.judged, other.judged)
        assert (first.given[first.judged.expand_as(pictures)] == GREY).all(), "it is not shown"
        assert torch.equal(first.made.masked_fill(first.judged, 0), pictures.masked_fill(first.judged, 0))
    simple = made.simple(pictures, first.given, first.judged)
    assert simple and all(each.shape == pictures.shape and each.dtype == torch.uint8 for each in simple.values())
    assert "\n" not in made.caption() and made.caption().endswith(".")
    with pytest.raises(RuntimeError, match=f"a head of the kind {kind} lacks"):
        Remaker.of_head(kind, settings, dict(list(head.tensors.items())[1:]), model)
