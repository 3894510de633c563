"""Forecasting: transformers' loss at equal weights, nothing of the future seen, naive forecasts, odd series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from serials import batch_of, sample_of, tiny_section
from transformers import PatchTSTForPrediction

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover

AT = Progress(0, 10)
KIND = discover()["forecast"]
Make = Callable[..., Any]
LENGTH, HORIZON, PERIOD = 24, 6, 4  # of the preset


def walks(count: int, steps: int = LENGTH + HORIZON, seed: int = 0) -> list[np.ndarray]:
    """float32 [steps, 6] each, of levels and deviations that differ by channel."""
    rng = np.random.default_rng(seed)
    level, size = np.array([0.0, 5.0, -40.0, 300.0, 0.5, 2.0]), np.array([1.0, 0.2, 3.0, 10.0, 0.05, 1.0])
    return [(rng.standard_normal((steps, 6)).cumsum(0) * size + level).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("errors", ["values", "deviations"])
def test_the_loss_is_that_of_transformers(errors: str, objective: Make) -> None:
    """Its own is in the unit of the data; in deviations, it is the error of its forecasts by its own scale."""
    task = objective(KIND, "forecast", errors=errors)
    windows = walks(5)
    batch = batch_of(task, windows)
    config = task.backbone.model.config
    config = type(config)(**(config.to_dict() | {"prediction_length": HORIZON, "pooling_type": None, "loss": "mse"}))
    theirs = PatchTSTForPrediction(config)
    theirs.model.load_state_dict(task.backbone.model.state_dict())
    theirs.head.projection.load_state_dict(task.head.state_dict())
    given = torch.from_numpy(np.stack(windows))
    out = theirs(past_values=given[:, :LENGTH], future_values=given[:, LENGTH:])
    want = out.loss
    if errors == "deviations":
        want = ((out.prediction_outputs - given[:, LENGTH:]) / out.scale).square().mean()
    losses = task(batch, AT)
    assert losses.stats["clipped"] == 0
    torch.testing.assert_close(losses.total, want, rtol=1e-5, atol=1e-5)
    losses.total.backward()
    want.backward()
    for mine, other in ((task.head, theirs.head.projection), (task.backbone.model, theirs.model)):
        for name, parameter in mine.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad, rtol=2e-3, atol=1e-5)


def test_nothing_sees_the_future(objective: Make) -> None:
    """Another future: the same inputs, to the bit, and so the same mean, deviation and forecast."""
    task = objective(KIND, "forecast")
    predictions: list[torch.Tensor] = []
    task.head.register_forward_hook(lambda layer, given, output: predictions.append(output))
    for shift in (0.0, 1e4):
        values = walks(1)[0]
        values[LENGTH:] += shift
        batch = batch_of(task, [values])
        task(batch, AT)
        predictions.append(torch.cat([batch["series"], batch["series_mask"].float()]))
        predictions.append(batch["target"])
    first, inputs, target, second, same_inputs, other_target = predictions
    assert torch.equal(first, second) and torch.equal(inputs, same_inputs) and not torch.equal(target, other_target)


def test_windows_are_drawn_all_over_a_series(objective: Make) -> None:
    """A window's context stands right before its horizon, and each place of a long series is drawn."""
    task = objective(KIND, "forecast", errors="values")
    values = np.repeat(np.arange(40.0)[:, None], 6, 1)
    begins = set()
    for seed in range(200):
        found = task.prepare(sample_of(values), np.random.default_rng(seed), None)
        whole = np.concatenate([found["series"], found["target"]])[:, 0]
        assert np.allclose(np.diff(whole), 1) and found["asked"].all() and found["series_mask"].all()
        begins.add(seed_begin(task, values, seed))
    assert begins == set(range(11))


def seed_begin(task: Any, values: np.ndarray, seed: int) -> int:
    """Where the window of a seed begins: a value of its own is missing there."""
    for begin in range(11):
        marked = values.copy()
        marked[begin] = np.nan
        found = task.prepare(sample_of(marked), np.random.default_rng(seed), None)
        if not found["series_mask"][0].any() and found["series_mask"][1].all():
            return begin
    raise AssertionError


def test_naive_forecasts_are_what_loops_say(objective: Make) -> None:
    """With values missing, in both units; the blind line is the better of mean and last value."""
    for errors in ("deviations", "values"):
        task = objective(KIND, "forecast", errors=errors)
        windows = walks(4, seed=3)
        rng = np.random.default_rng(0)
        for window in windows:
            window[rng.random(window.shape) < 0.3] = np.nan
        windows[0][:LENGTH, 2] = np.nan  # of this channel nothing is known
        sums, count = {"mean": 0.0, "last_value": 0.0, "seasonal_naive": 0.0}, 0
        for window in windows:
            for channel in range(6):
                past, future = window[:LENGTH, channel].astype(float), window[LENGTH:, channel].astype(float)
                known = past[np.isfinite(past)]
                if not len(known):
                    continue
                scale = np.sqrt(known.var() + 1e-5) if errors == "deviations" else 1.0
                for step in range(HORIZON):
                    if np.isfinite(future[step]):
                        before = past[LENGTH - PERIOD + step % PERIOD]
                        guesses = known.mean(), known[-1], before if np.isfinite(before) else known[-1]
                        for name, guess in zip(sums, guesses, strict=True):
                            sums[name] += ((guess - future[step]) / scale) ** 2
                        count += 1
        losses = task(batch_of(task, windows), AT)
        for name, total in sums.items():
            assert losses.stats[name].item() == pytest.approx(total / count, rel=1e-4), name
        assert float(losses.blind) == pytest.approx(min(sums["mean"], sums["last_value"]) / count, rel=1e-4)


def test_the_last_value_is_the_line_of_a_walk(objective: Make) -> None:
    losses = (task := objective(KIND, "forecast"))(batch_of(task, walks(8)), AT)
    assert losses.blind == losses.stats["last_value"] < losses.stats["mean"]


def test_short_series_are_filled_up_in_front(objective: Make) -> None:
    """What is behind is right before the horizon, as in whole windows."""
    task = objective(KIND, "forecast")
    found = task.prepare(sample_of(walks(1, steps=10)[0]), np.random.default_rng(0), None)
    seen = found["series_mask"]
    assert seen[-4:].all() and not seen[:-4].any() and found["asked"].all()
    losses = task(batch_of(task, walks(2, steps=10)), AT)
    assert losses.total.isfinite()


def test_a_jump_behind_a_constant_stays_finite(objective: Make) -> None:
    task = objective(KIND, "forecast")
    values = np.full((LENGTH + HORIZON, 6), 20.0)
    values[LENGTH:] = 1e6
    losses = task(batch_of(task, [values]), AT)
    assert losses.blind == 100 and losses.stats["clipped"] == 1 and losses.total.isfinite()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((40, 7)), "series of 7 channels; this backbone takes 6"),
        (np.zeros((6, 6)), "series of 6 steps; allowed: >= 7"),
        (np.where(np.arange(30)[:, None] < 24, np.nan, np.ones((30, 6))), "no channel has a value in the 24 steps"),
        (np.where(np.arange(30)[:, None] < 24, np.ones((30, 6)), np.inf), "and one in the 6 behind them"),
    ],
)
def test_odd_series_are_bad_samples(values: np.ndarray, said: str, objective: Make) -> None:
    with pytest.raises(DataError, match=f"shard x.tar, sample 's': .*{said}"):
        objective(KIND, "forecast").prepare(sample_of(values), np.random.default_rng(0), None)


def test_settings_that_cannot_be_are_refused(objective: Make) -> None:
    with pytest.raises(ConfigError, match="objective.period: value 25; allowed: <= 24, the steps that backbone"):
        objective(KIND, "forecast", period=25)
    with pytest.raises(ConfigError, match=r"backbones.other.config.scaling: value 'mean'; allowed: std"):
        objective(KIND, "forecast", beside={"other": tiny_section(KIND, scaling="mean")}, backbone="other")


def test_overlapping_patches_and_class_tokens_serve(objective: Make, batch: Make) -> None:
    for changes in ({"patch_stride": 2}, {"use_cls_token": True}, {"channel_attention": True}):
        task = objective(KIND, "forecast", beside={"other": tiny_section(KIND, **changes)}, backbone="other")
        assert task(batch(task), AT).total.isfinite()
