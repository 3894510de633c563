"""SimCLR trains on any paper's views, and on the same ones wherever they are rendered."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigssl.data.loading.loader import SEEDS
from bigssl.nets.progress import Progress
from bigssl.objectives.simclr import Simclr

AT = Progress(0, 100)


@pytest.mark.parametrize("preset", ["simclr", "byol"])
def test_views_of_the_device_are_those_of_the_workers(preset: str, objective: Any, batch: Any) -> None:
    found = {}
    for device in ("cpu", "accelerator"):
        task = objective(Simclr, "simclr", augment={"preset": preset, "device": device})
        data = batch(task)
        assert set(data) - {SEEDS} == ({"image", "view1", "view2"} if device == "accelerator" else {"view1", "view2"})
        views = torch.stack(task.views.of(data))
        assert (views.dtype, views.shape) == (torch.uint8, (2, 12, 3, 32, 32))
        found[device] = views.float(), task(data, AT).total.item()
    (workers, loss), (devices, other) = found["cpu"], found["accelerator"]
    assert (workers - devices).abs().mean() < 2
    assert other == pytest.approx(loss, rel=0.05)


def test_single_fields_replace_the_presets(objective: Any) -> None:
    task = objective(Simclr, "simclr", augment={"preset": "mae", "min_scale": 0.5})
    assert [(part.min_scale, part.jitter) for part in task.views.distributions] == [(0.5, 0.0)] * 2
