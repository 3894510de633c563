"""Shares are met at every position, in closed form, and the inverse is one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.order.schedule import Schedule

weights = st.lists(st.integers(1, 1000), min_size=1, max_size=12)


def shares(schedule: Schedule) -> list[Fraction]:
    return [Fraction(weight, schedule.total) for weight in schedule.weights]


@settings(max_examples=50, deadline=None)
@given(weights, st.integers(0, 10**15))
def test_every_count_is_within_two_of_its_share(weights: list[int], start: int) -> None:
    """The slow truth: one by one from `start`, where the counts are those that `deal` reports."""
    schedule = Schedule(weights)
    served, counts = schedule.deal(np.arange(start, start + 300, dtype=np.int64))
    known = {int(d): int(c) for d, c in zip(served[::-1], counts[::-1], strict=True)}
    for position, (dataset, count) in enumerate(zip(served.tolist(), counts.tolist(), strict=True), start):
        assert count == known[dataset]
        known[dataset] += 1
        for other, so_far in known.items():
            share = schedule.weights[other] * (position + 1)  # in units of 1 / total
            assert abs(so_far * schedule.total - share) < 2 * schedule.total


@settings(max_examples=50, deadline=None)
@given(weights)
def test_from_the_start_counts_are_what_was_served(weights: list[int]) -> None:
    served, counts = Schedule(weights).deal(np.arange(500, dtype=np.int64))
    for dataset in range(len(weights)):
        assert counts[served == dataset].tolist() == list(range((served == dataset).sum()))


@settings(max_examples=50, deadline=None)
@given(weights, st.integers(0, 10**12))
def test_the_inverse(weights: list[int], position: int) -> None:
    schedule = Schedule(weights)
    for place in range(position, position + 20):
        dataset, count = schedule.deal_one(place)
        assert schedule.position(dataset, count) == place
        assert [int(values[0]) for values in schedule.deal(np.array([place]))] == [dataset, count]


@settings(max_examples=50, deadline=None)
@given(weights, st.integers(1, 200), st.integers(0, 10**6))
def test_most_is_a_bound(weights: list[int], size: int, start: int) -> None:
    schedule = Schedule(weights)
    served, _ = schedule.deal(np.arange(start, start + size + 100))
    for dataset in range(len(weights)):
        windows = np.convolve(served == dataset, np.ones(size, dtype=int), mode="valid")
        assert windows.max() <= schedule.most(dataset, size) < size * shares(schedule)[dataset] + 4


def test_whole_periods_hold_exact_shares() -> None:
    served, _ = Schedule([0.7, 0.2, 0.1]).deal(np.arange(10**4))
    assert np.bincount(served).tolist() == [7000, 2000, 1000]
    assert np.bincount(served.reshape(-1, 10)[777]).tolist() == [7, 2, 1]


def test_weights_are_ratios_as_written() -> None:
    assert Schedule([0.7, 0.2, 0.1]).weights == Schedule([7, 2, 1]).weights == Schedule([70.0, 20.0, 10.0]).weights
    assert Schedule([3e-7, 1e-7]).weights == [3, 1]


def test_golden_schedule() -> None:
    """A change here breaks the resume of runs that were started with an earlier version."""
    golden = [0, 1, 0, 2, 0, 1, 3, 2, 0, 1, 0, 0, 1, 0, 2, 0, 1, 3, 2, 0, 1, 0]
    assert Schedule([5, 3, 2, 1]).deal(np.arange(22))[0].tolist() == golden


@pytest.mark.parametrize("bad", [[], [0.0], [1, -1], [float("nan")], [float("inf")], [1e-12, 1]])
def test_bad_weights_are_named(bad: list[float]) -> None:
    with pytest.raises(DataError, match="mixture: weights"):
        Schedule(bad)
