"""Series contrast: the loss against loops and across ranks, crops that show the same times, odd series."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from serials import sample_of, tiny_section

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.engine import zero
from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover
from bigssl.objectives.hierarchy import hierarchical_contrast

AT = Progress(0, 10)
KIND = discover()["series_contrast"]
Make = Callable[..., Any]
LENGTH, PATCH, SHARED = 32, 4, 4  # of the preset: 4 of 8 patches


def by_loops(first: np.ndarray, second: np.ndarray, temperature: float) -> tuple[float, float]:
    """(instance, temporal) as section 3.3 and algorithm 1 of the paper write them, float64 [B, T, D] each."""
    instance, temporal, scales = 0.0, 0.0, 0
    while True:
        size, steps = first.shape[:2]
        views = first, second
        for t in range(steps):
            for view in (0, 1):
                for row in range(size):
                    anchor = views[view][row, t]
                    positive = math.exp(anchor @ views[1 - view][row, t] / temperature)
                    others = sum(math.exp(anchor @ views[v][r, t] / temperature)
                                 for v in (0, 1) for r in range(size) if (v, r) != (view, row))  # fmt: skip
                    instance -= math.log(positive / others) / (2 * size * steps)
                    if steps > 1:
                        others = sum(math.exp(anchor @ views[v][row, s] / temperature)
                                     for v in (0, 1) for s in range(steps) if (v, s) != (view, t))  # fmt: skip
                        temporal -= math.log(positive / others) / (2 * size * steps)
        scales += 1
        if steps == 1:
            return instance / scales, temporal / scales
        half = steps // 2
        first, second = (np.maximum(v[:, 0 : 2 * half : 2], v[:, 1 : 2 * half : 2]) for v in views)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.sampled_from([0.5, 1.0]), st.integers(0, 999))
def test_the_loss_is_what_loops_say(size: int, steps: int, dim: int, temperature: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second = generator.standard_normal((2, size, steps, dim))
    got = hierarchical_contrast(torch.from_numpy(first), torch.from_numpy(second), temperature)
    want = by_loops(first, second, temperature)
    assert [got.instance.item(), got.temporal.item()] == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_the_gradient_is_that_of_the_loss_written_out() -> None:
    """By differences of the loops, in float64."""
    first, second = np.random.default_rng(0).standard_normal((2, 3, 5, 2))
    leaf = torch.from_numpy(first).requires_grad_()
    got = hierarchical_contrast(leaf, torch.from_numpy(second))
    (got.instance + 2 * got.temporal).backward()
    for place in [(0, 0, 0), (1, 3, 1), (2, 4, 0)]:  # of the last step but the finest scale sees nothing
        moved = []
        for sign in (1, -1):
            changed = first.copy()
            changed[place] += sign * 1e-5
            instance, temporal = by_loops(changed, second, 1.0)
            moved.append(instance + 2 * temporal)
        assert leaf.grad is not None
        assert leaf.grad[place].item() == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-3, abs=1e-5)


def test_equal_states_are_at_the_blind_line() -> None:
    same = torch.ones(5, 6, 3)
    got = hierarchical_contrast(same, same)
    assert got.instance.item() == pytest.approx(got.blind_instance) == pytest.approx(math.log(9))
    assert got.temporal.item() == pytest.approx(got.blind_temporal)
    assert got.blind_temporal == pytest.approx((math.log(11) + math.log(5)) / 3)  # 6, 3 and 1 times


def share_of_two() -> tuple[float, float, torch.Tensor]:
    zero.start()
    first, second = states()
    rank = dist.get_rank()
    leaf = first[3 * rank : 3 * rank + 3].clone().requires_grad_()
    found = hierarchical_contrast(leaf, second[3 * rank : 3 * rank + 3])
    (found.instance + found.temporal).backward()
    assert leaf.grad is not None
    return found.instance.item(), found.temporal.item(), leaf.grad


def states() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 6, 7, 4, generator=generator)
    return first, second


@pytest.mark.distributed
def test_instances_are_those_of_all_ranks(crew: Any) -> None:
    first, second = states()
    leaf = first.clone().requires_grad_()
    whole = hierarchical_contrast(leaf, second)
    (whole.instance + whole.temporal).backward()
    shares = crew(share_of_two, 2)
    assert sum(share[0] for share in shares) / 2 == pytest.approx(whole.instance.item(), rel=1e-5)
    assert sum(share[1] for share in shares) / 2 == pytest.approx(whole.temporal.item(), rel=1e-5)
    torch.testing.assert_close(torch.cat([share[2] for share in shares]) / 2, leaf.grad, rtol=1e-4, atol=1e-6)


def test_what_is_compared_is_of_the_same_times(objective: Make) -> None:
    """A ramp, of which each value says its time: in both crops the shared patches are the same."""
    task = objective(KIND, "series_contrast", hide=0.0)
    ramp = np.repeat(np.arange(60.0)[:, None], 6, 1)
    for seed in range(20):
        found = task.prepare(sample_of(ramp), np.random.default_rng(seed), None)
        levels = [found[f"series{n}"][:, 0] - found[f"series{n}"][0, 0] for n in (1, 2)]
        assert all(np.allclose(each, np.arange(LENGTH)) for each in levels)
    steps = {"first": torch.arange(LENGTH).float(), "second": torch.arange(LENGTH).float() + task._later}

    def told(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Hidden states that say the time of each patch, in each channel."""
        times = torch.stack(list(steps.values())).view(2, 1, LENGTH // PATCH, PATCH)[..., :1]
        return times.expand(2, 6, -1, -1).flatten(1, 2)

    task.backbone.hidden = told
    batch = {k: torch.from_numpy(v)[None] for k, v in found.items()}
    first, second = (task.embed(batch)[name] for name in ("first", "second"))
    assert first.shape == (1, SHARED, 1) and torch.equal(first, second)


def test_hidden_times_are_whole_patches_of_all_channels_and_never_all(objective: Make) -> None:
    task = objective(KIND, "series_contrast", hide=0.95)
    values = np.random.default_rng(0).standard_normal((48, 6))
    values[:, 3] = np.nan
    shares = []
    for seed in range(60):
        found = task.prepare(sample_of(values), np.random.default_rng(seed), None)
        for number in (1, 2):
            seen = found[f"seen{number}"]
            patches = seen.reshape(8, PATCH, 6)
            assert (patches == patches[:, :1]).all() and not seen[:, 3].any() and seen.any()
            assert not found[f"series{number}"][~seen].any()
            shares.append(patches[:, 0, 0].mean())
    assert 1 / 8 <= np.mean(shares) < 0.2


def test_short_and_broken_series(objective: Make, batch: Make) -> None:
    task = objective(KIND, "series_contrast")
    found = task.prepare(sample_of(np.random.default_rng(0).standard_normal((20, 6))), np.random.default_rng(0), None)
    assert not found["seen1"][20:].any() and not found["seen2"][4:].any()
    for values, said in (
        (np.zeros((10, 6)), "nothing was observed in a crop of 32 steps"),
        (np.zeros((48, 5)), "series of 5 channels; this backbone takes 6"),
        (np.full((48, 6), np.inf), "without a finite value"),
    ):
        with pytest.raises(DataError, match=f"sample 's': .*{said}"):
            task.prepare(sample_of(values), np.random.default_rng(0), None)
    flat = task.prepare(sample_of(np.ones((48, 6))), np.random.default_rng(0), None)
    losses = task({k: torch.from_numpy(np.stack([v, v])) for k, v in flat.items()}, AT)
    assert losses.total.isfinite()


def test_settings_that_cannot_be_are_refused(objective: Make) -> None:
    with pytest.raises(ConfigError, match=r"objective.overlap: value 0.1 of 8 patches is 1; allowed: 2 patches"):
        objective(KIND, "series_contrast", overlap=0.1)
    with pytest.raises(ConfigError, match="other.config.patch_stride: value 8 with patch_length 4: steps between"):
        objective(KIND, "series_contrast", beside={"other": tiny_section(KIND, patch_stride=8)}, backbone="other")


@pytest.mark.parametrize("scaling", ["std", None])
def test_the_encoder_of_the_paper_serves(scaling: str | None, objective: Make, batch: Make) -> None:
    """Its times are steps; without normalisation of its own, it is given the values as they are."""
    section = {"type": "ts2vec", "channels": 6, "length": 32,
               "config": {"hidden_size": 16, "width": 8, "depth": 2, "dropout": 0.0, "scaling": scaling}}  # fmt: skip
    task = objective(KIND, "series_contrast", beside={"other": section}, backbone="other", hide=0.0)
    assert task.patch == 1 and task.shared == 16
    losses = task(batch(task), AT)
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.backbone.parameters())
    values = np.random.default_rng(0).standard_normal((48, 6)) + 100
    found = task.prepare(sample_of(values), np.random.default_rng(0), None)
    assert (abs(found["series1"].mean()) > 99) == (scaling is None)


def test_states_of_all_channels_are_refused_where_channels_are_predicted(objective: Make) -> None:
    section = {"type": "ts2vec", "channels": 6, "length": 32, "config": {"width": 8, "depth": 1, "hidden_size": 8}}
    for name in ("masked_series", "forecast"):
        with pytest.raises(ConfigError, match="it is of type ts2vec, whose states are of all channels together"):
            objective(discover()[name], name, beside={"other": section}, backbone="other")
