"""data2vec: targets and loss in loops from the teacher's layers; what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bigssl.config.errors import ConfigError
from bigssl.nets.modality import MODALITIES
from bigssl.nets.progress import Progress
from bigssl.nets.sound.frames import encode_frames
from bigssl.objectives.base import discover
from bigssl.objectives.data2vec import EPSILON

AT = Progress(0, 100)
KIND = discover()["data2vec"]


@pytest.mark.parametrize("layers", [1, 2])
def test_the_loss_in_loops(layers: int, objective: Any, batch: Any) -> None:
    """Each dimension of each of the teacher's last layers, normalised over the frames that are heard; their mean."""
    task = objective(KIND, "data2vec", layers=layers)
    with torch.no_grad():
        for parameter in task.teacher.module.parameters():  # no copy any more
            parameter.mul_(1.1)
    data = batch(task, size=3)
    losses = task(data, AT)
    slow = task.teacher.module.model
    with torch.no_grad():
        states = encode_frames(task.backbone.model, data, data["hidden"], task.token).hidden
        predicted = task.head(states).double().numpy()
        inputs = MODALITIES["audio"].inputs(slow, data)
        found = slow(**inputs, output_hidden_states=True)
        assert torch.equal(found.hidden_states[-1], found.last_hidden_state)  # of this type
    errors, wanted = [], []
    for b in range(3):
        frames = task.steps.frames(int(data["audio_mask"][b].sum()))
        targets = np.zeros((frames, task.backbone.dim))
        for layer in found.hidden_states[-layers:]:
            heard = layer[b, :frames].double().numpy()
            targets += (heard - heard.mean(0)) / np.sqrt(heard.var(0) + EPSILON) / layers
        for f in data["hidden"][b].nonzero().flatten().tolist():
            wanted.append(targets[f])
            errors.append(((predicted[b, f] - targets[f]) ** 2).mean())
    assert losses.total.item() == pytest.approx(np.mean(errors), rel=1e-4)
    assert float(losses.blind) == pytest.approx(np.var(wanted, 0, ddof=1).mean(), rel=1e-4)


def test_the_momentum_rises_along_a_line(objective: Any) -> None:
    teacher = objective(KIND, "data2vec", momentum=0.9, momentum_to=1.0, ramp=0.5).teacher
    assert [round(teacher.momentum(Progress(step, 100)), 6) for step in (0, 25, 50, 99)] == [0.9, 0.95, 1.0, 1.0]


@pytest.mark.parametrize(("changes", "said"), [
    ({"layers": 3}, "objective.layers: value 3; allowed: 1 to 2, the layers of backbone 'audio'"),
    ({"momentum": 0.99, "momentum_to": 0.9}, "objective.momentum_to: value 0.9; allowed: >= momentum 0.99"),
])  # fmt: skip
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str, objective: Any) -> None:
    with pytest.raises(ConfigError, match=said):
        objective(KIND, "data2vec", **changes)
