"""Series order: the label says which segment stands where, and nothing but their shapes tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from serials import batch_of, sample_of, tiny_section

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover

AT = Progress(0, 10)
KIND = discover()["series_order"]
Make = Callable[..., Any]


def drawn(task: Any, values: np.ndarray, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = task.prepare(sample_of(values), np.random.default_rng(seed), None)
    return found


def test_the_label_is_the_permutation_of_what_is_shown(objective: Make) -> None:
    """Of a series whose slope grows, by which each segment says where it was; and each label is drawn as often."""
    task = objective(KIND, "series_order")
    labels: Counter[int] = Counter()
    for seed in range(300):
        found = drawn(task, (np.arange(24.0) ** 2)[:, None], seed)
        slopes = [np.diff(s[m]).mean() for s, m in zip(found["series"], found["series_mask"], strict=True)]
        assert np.argsort(np.argsort(slopes)).tolist() == task.permutations[found["label"]].tolist()
        labels[found["label"]] += 1
    assert sorted(labels) == list(range(6)) and min(labels.values()) > 25
    assert len({tuple(each) for each in task.permutations.tolist()}) == 6


def test_neither_level_nor_place_nor_touching_ends_tell(objective: Make) -> None:
    """Segments have no mean; where one stands in its window is chance, whatever its time; and steps between two are
    shown by none."""
    task = objective(KIND, "series_order")
    ramp = np.arange(24.0)[:, None] * 10 + 5e4
    places: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for seed in range(400):
        found = drawn(task, ramp, seed)
        times = task.permutations[found["label"]]
        for shown, seen, time in zip(found["series"], found["series_mask"], times, strict=True):
            assert seen.sum() == task.steps and abs(shown[seen].mean()) < 1e-3 and not shown[~seen].any()
            places[int(time)].append(int(seen.argmax()))
    free = range(0, 24 - task.steps + 1, 2)
    for own in places.values():
        assert set(own) == set(free) and abs(np.mean(own) - np.mean(free)) < 1.2
    assert task.slack // 2 >= 1 and task.steps * 3 + task.slack * 2 <= 24


def test_two_segments_are_swapped_or_not(objective: Make, batch: Make) -> None:
    """Sentence order, in time."""
    task = objective(KIND, "series_order", segments=2, permutations=2)
    losses = task(batch(task), AT)
    assert losses.blind == pytest.approx(np.log(2)) and sorted(map(tuple, task.permutations)) == [(0, 1), (1, 0)]


def test_the_backbone_sees_one_segment_at_a_time(objective: Make, batch: Make) -> None:
    task = objective(KIND, "series_order").eval()
    data, met = batch(task), list[torch.Tensor]()
    task.backbone.model.register_forward_hook(lambda model, given, output: met.append(output.last_hidden_state))
    task(data, AT)
    changed = data | {"series": data["series"].clone()}
    changed["series"][0, 1] *= -1
    task(changed, AT)
    size = len(data["label"])
    same = [torch.equal(a, b) for a, b in zip(*met, strict=True)]
    assert len(same) == 3 * size and [row for row, each in enumerate(same) if not each] == [size]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((18, 1)), r"series of 18 steps; allowed: >= (19|2\d)"),
        (np.where(np.arange(24)[:, None] < 15, np.nan, 1.0), "nothing was observed in a segment of 6 steps"),
        (np.zeros((24, 2)), "series of 2 channels; this backbone takes 1"),
    ],
)
def test_odd_series_are_bad_samples(values: np.ndarray, said: str, objective: Make) -> None:
    task = objective(KIND, "series_order")
    with pytest.raises(DataError, match=f"sample 's': {said}"):
        for seed in range(9):
            drawn(task, values, seed)


def test_constant_series_have_no_order_and_a_finite_loss(objective: Make) -> None:
    task = objective(KIND, "series_order")
    assert task(batch_of(task, [np.full((24, 1), 7.0)] * 3), AT).total.isfinite()


def test_settings_that_cannot_be_are_refused(objective: Make) -> None:
    with pytest.raises(ConfigError, match="objective.permutations: value 7; allowed: <= 6, all that there are of 3"):
        objective(KIND, "series_order", permutations=7)
    with pytest.raises(ConfigError, match=r"objective.segments: value 8 .* makes segments of 2 of the 24 steps"):
        objective(KIND, "series_order", segments=8)
    with pytest.raises(ConfigError, match="other.config.scaling: value None; allowed: std"):
        objective(KIND, "series_order", beside={"other": tiny_section(KIND, scaling=None)}, backbone="other")
