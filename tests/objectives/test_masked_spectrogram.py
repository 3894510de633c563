"""Masked spectra: the loss in loops; nothing of what is asked for is shown, to the last sample; bands there are none
of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bigssl.config.errors import ConfigError
from bigssl.nets.progress import Progress
from bigssl.nets.sound.frames import silenced
from bigssl.nets.sound.mel import log_mel
from bigssl.objectives.base import discover
from bigssl.objectives.masked_spectrogram import CENTRE, SCALE

AT = Progress(0, 100)
KIND = discover()["masked_spectrogram"]


def test_silenced_is_what_hidden_frames_see_and_no_more(objective: Any, batch: Any) -> None:
    task = objective(KIND, "masked_spectrogram")
    data, (seen, stride) = batch(task, size=4), task.steps
    expected = data["audio"].clone()
    for b, f in data["hidden"].nonzero().tolist():
        expected[b, f * stride : f * stride + seen] = 0
    assert torch.equal(silenced(data["audio"], data["hidden"], task.steps), expected)


def test_the_loss_in_loops_beside_the_mean_spectrum(objective: Any, batch: Any) -> None:
    task = objective(KIND, "masked_spectrogram")
    data, (seen, stride) = batch(task, size=4), task.steps
    losses = task(data, AT)
    with torch.no_grad():
        states = task.backbone.hidden(data | {"audio": silenced(data["audio"], data["hidden"], task.steps)})
        predicted = task.head(states)
    errors, wanted = [], []
    for b, f in data["hidden"].nonzero().tolist():
        window = data["audio"][b : b + 1, f * stride : f * stride + seen]
        spectrum = (log_mel(window, task.config.bands, task.backbone.rate, seen, stride)[0, 0] - CENTRE) / SCALE
        wanted.append(spectrum.double().numpy())
        errors.append(((predicted[b, f].double().numpy() - wanted[-1]) ** 2).mean())
    assert losses.total.item() == pytest.approx(np.mean(errors), rel=1e-4)
    assert float(losses.blind) == pytest.approx(np.var(wanted, 0, ddof=1).mean(), rel=1e-4)


def test_what_is_hidden_is_seen_by_nothing(objective: Any, batch: Any) -> None:
    """The prediction of all frames stays as it is, to the bit, when every hidden sample is another."""
    task = objective(KIND, "masked_spectrogram").eval()
    data = batch(task, size=4)
    shown = silenced(torch.ones_like(data["audio"]), data["hidden"], task.steps)
    other = torch.where(shown == 0, torch.randn_like(shown), data["audio"])
    one, two = (silenced(each, data["hidden"], task.steps) for each in (data["audio"], other))
    with torch.no_grad():
        assert torch.equal(task.backbone.hidden(data | {"audio": one}), task.backbone.hidden(data | {"audio": two}))
    assert task(data | {"audio": other}, AT).total != task(data, AT).total  # but it is what is asked for


def test_more_bands_than_frequencies_are_refused(objective: Any) -> None:
    with pytest.raises(ConfigError, match=r"objective.bands: value 900, of which \d+ lie between two frequencies"):
        objective(KIND, "masked_spectrogram", bands=900)
