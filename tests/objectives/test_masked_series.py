"""Masked series: transformers' loss at equal weights, what is hidden and what the statistics see, odd series."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serials import batch_of, sample_of, tiny_section
from torch import nn
from transformers import PatchTSTForPretraining

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover
from bigssl.objectives.masked_series import hidden_of

AT = Progress(0, 10)
Make = Callable[..., Any]


@pytest.fixture
def task(objective: Make) -> Any:
    return objective(discover()["masked_series"], "masked_series")


def prepared(task: Any, values: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Of a series, all fields [T, C]."""
    found: dict[str, Any] = task.prepare(sample_of(values), np.random.default_rng(seed), None)
    return found | {name: found[name].T for name in ("target", "asked")}


class GivenMask(nn.Module):
    """In place of transformers' masking: what was drawn here."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return patches.masked_fill(self.hidden[..., None], 0), self.hidden


@pytest.mark.parametrize("length", [32, 34])
def test_the_loss_is_that_of_transformers(length: int, objective: Make) -> None:
    """At equal weights, windows and masks, also where two steps in front fill no patch. It is told that hidden values
    were not observed: its statistics are then of the visible ones, and its targets in units of these."""
    kind = discover()["masked_series"]
    section = tiny_section(kind) | {"length": length}
    task = objective(kind, "masked_series", beside={"other": section}, backbone="other")
    rng = np.random.default_rng(1)
    level = np.array([0.0, 5.0, -40.0, 300.0, 0.01, 2.0])
    windows = [(rng.standard_normal((length, 6)).cumsum(0) * 0.3 + level).astype(np.float32) for _ in range(5)]
    batch = batch_of(task, windows)
    visible = batch["series_mask"]
    model = task.backbone.model
    theirs = PatchTSTForPretraining(model.config)
    theirs.model.load_state_dict(model.state_dict())
    theirs.head.linear.load_state_dict(task.head.state_dict())
    hidden = ~visible[:, length - 32 :].unfold(1, 4, 4).any(-1).transpose(1, 2)  # [B, C, P]
    theirs.model.masking = GivenMask(hidden)
    given = torch.from_numpy(np.stack(windows))
    out = theirs(past_values=given, past_observed_mask=visible.float())
    losses = task(batch, AT)
    assert losses.stats["clipped"] == 0
    torch.testing.assert_close(losses.total, out.loss, rtol=1e-5, atol=1e-5)
    losses.total.backward()
    out.loss.backward()
    for mine, other in ((task.head, theirs.head.linear), (model, theirs.model)):
        for name, parameter in mine.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad, rtol=1e-3, atol=1e-5)


def test_what_is_hidden_is_seen_by_nothing(task: Any) -> None:
    """Neither by the network nor by the mean and deviation that it is given the rest in."""
    values = np.random.default_rng(0).standard_normal((32, 6))
    first = prepared(task, values)
    asked = first["asked"]
    changed = prepared(task, np.where(asked, values + 7.0, values))
    assert np.array_equal(changed["asked"], asked)
    assert np.array_equal(changed["series"], first["series"])
    assert not np.array_equal(changed["target"], first["target"])
    assert not first["series"][asked].any() and not first["series_mask"][asked].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.floats(0, 0.9), st.integers(0, 2**32 - 1))
def test_asked_values_are_observed_hidden_and_beside_visible_ones(steps: int, lost: float, seed: int) -> None:
    """Whatever is missing, and however short it is; or the sample is refused, in words."""
    from conftest import make_objective

    task: Any = cached(make_objective)
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((steps, 6)) * 3 + 100
    values[rng.random(values.shape) < lost] = np.nan
    try:
        found = prepared(task, values, seed)
    except DataError as error:
        assert "without a finite value" in str(error) or "no channel has two patches" in str(error)
        return
    asked, visible = found["asked"], found["series_mask"]
    assert asked.any() and not (asked & visible).any()
    assert visible.any(0)[asked.any(0)].all()
    assert found["series"][~visible].sum() == 0 and found["target"][~asked].sum() == 0
    assert all(found[name].dtype == np.float32 and np.isfinite(found[name]).all() for name in ("series", "target"))
    if steps <= 32:  # the window is the whole of it
        observed = np.pad(np.isfinite(values), ((0, 32 - steps), (0, 0)))
        assert not (asked & ~observed).any()
        for channel in range(6):
            held, hidden = (each[:, channel].reshape(8, 4).any(1).sum() for each in (observed, asked))
            assert hidden == hidden_of(held, 0.4), "of patches that hold something"


_made: list[Any] = []


def cached(make: Make) -> Any:
    if not _made:
        _made.append(make(discover()["masked_series"], "masked_series"))
    return _made[0]


def test_as_many_are_hidden_as_by_transformers() -> None:
    assert [hidden_of(patches, 0.4) for patches in (0, 1, 2, 6, 8, 42)] == [0, 0, 1, 3, 4, 17]
    assert hidden_of(8, 0.99) == 7
    assert [hidden_of(n, 0.5) for n in (3, 10)] == [n - int(n * 0.5) for n in (3, 10)]


def test_constant_channels_and_jumps_stay_finite(task: Any) -> None:
    """A constant has nothing to be predicted; a jump behind a constant counts as 10 deviations, and is counted."""
    flat = np.full((32, 6), 3.0e6)
    found = prepared(task, flat)
    assert not found["target"].any() and found["asked"].any()
    jump = np.where(found["asked"], 4.0e6, flat)
    found = prepared(task, jump)
    assert (found["target"][found["asked"]] == 10).all()
    losses = task(batch_of(task, [jump]), AT)
    assert losses.stats["clipped"] == 1 and losses.blind == 100 and losses.total.isfinite()


def test_a_level_does_not_cost_digits(task: Any) -> None:
    """Quarters on a million, which bf16 would not tell apart."""
    quarters = np.random.default_rng(2).integers(-8, 8, (32, 6)) / 4
    near, far = prepared(task, quarters), prepared(task, quarters + 1.0e6)
    np.testing.assert_allclose(far["target"], near["target"], atol=1e-5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((32, 2)), "shard x.tar, sample 's': series of 2 channels; this backbone takes 6"),
        (np.full((32, 6), np.nan), "without a finite value"),
        (np.zeros((4, 6)), "no channel has two patches of 4 steps"),
        (np.full((32, 6), 1e30), r"value 1e\+30; allowed: up to 1e\+18"),
        (np.zeros((0, 6)), "series of 0 steps"),
    ],
)
def test_odd_series_are_bad_samples(task: Any, values: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        prepared(task, values)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch_stride": 2}, "backbones.series.config.patch_stride: value 2 with patch_length 4: an overlapping"),
        ({"scaling": None}, "backbones.series.config.scaling: value None; allowed: std"),
        ({"patch_length": 16, "patch_stride": 16, "context_length": 32}, None),
        ({"patch_length": 20, "patch_stride": 20}, "objective.ratio: value 0.4 hides 0 of 1 patches"),
    ],
)
def test_backbones_that_do_not_serve_are_refused(objective: Make, changes: dict[str, Any], said: str | None) -> None:
    kind = discover()["masked_series"]
    beside = {"other": tiny_section(kind, **changes)}
    if said is None:
        objective(kind, "masked_series", beside=beside, backbone="other")
        return
    with pytest.raises(ConfigError, match=said.replace("series.config", "other.config")):
        objective(kind, "masked_series", beside=beside, backbone="other")


def test_mixers_of_patches_serve_too(objective: Make, batch: Make) -> None:
    """PatchTSMixer, with the same fields."""
    kind = discover()["masked_series"]
    section = {"type": "patchtsmixer", "channels": 6, "length": 32,
               "config": {"d_model": 16, "num_layers": 1, "patch_length": 4, "patch_stride": 4}}  # fmt: skip
    task = objective(kind, "masked_series", beside={"other": section}, backbone="other")
    losses = task(batch(task), AT)
    assert losses.total.isfinite() and losses.total > 0


def test_npy_of_integers_and_of_one_dimension(objective: Make) -> None:
    kind = discover()["masked_series"]
    section = tiny_section(kind) | {"channels": 1}
    task = objective(kind, "masked_series", beside={"one": section}, backbone="one")
    stream = io.BytesIO()
    np.save(stream, np.arange(50))
    found = task.prepare(sample_of(stream.getvalue()), np.random.default_rng(0), None)
    assert found["series"].shape == (32, 1)
