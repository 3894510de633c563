"""Returns, merged rows and features of time, against loops and Python's calendar."""

from __future__ import annotations

import math
from datetime import datetime, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigssl.data.tools.timed.clock import SECOND
from bigssl.data.tools.timed.grid import Placing, Regular
from bigssl.data.tools.timed.making import (
    FEATURES,
    Making,
    NoPrice,
    Taken,
    in_places,
    made_piece,
    returns_of,
    time_features,
)

prices = st.lists(st.floats(0.01, 1e6) | st.just(math.nan), min_size=1, max_size=20)


@given(prices)
def test_returns(column: list[float]) -> None:
    values = np.array(column)[:, None]
    log, simple = returns_of(values, "log")[:, 0], returns_of(values, "simple")[:, 0]
    assert math.isnan(log[0]) and math.isnan(simple[0])
    for t in range(1, len(column)):
        if math.isnan(column[t]) or math.isnan(column[t - 1]):
            assert math.isnan(log[t]) and math.isnan(simple[t])
        else:
            assert log[t] == pytest.approx(math.log(column[t]) - math.log(column[t - 1]), abs=1e-9)
            assert simple[t] == pytest.approx((column[t] - column[t - 1]) / column[t - 1], rel=1e-9, abs=1e-12)


def test_a_return_needs_prices() -> None:
    taken = Taken(np.array([[1.0, 0.0], [2.0, 5.0], [0.0, 5.0]]))
    values, _ = made_piece(taken._replace(values=taken.values[:2]), Making(1, None, 1, "log", (0,)))
    np.testing.assert_allclose(values, [[math.log(2), 5]], rtol=1e-6)  # what is no price stays
    with pytest.raises(NoPrice, match="price 0: returns need prices above 0") as caught:
        made_piece(taken, Making(2, None, 1, "log", (0,)))
    assert (caught.value.row, caught.value.channel) == (2, 0)


@given(st.lists(st.tuples(st.integers(0, 8), st.floats(-9, 9) | st.just(math.nan)), min_size=1, max_size=20))
def test_rows_of_one_place_are_merged(rows: list[tuple[int, float]]) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    places, values = np.array([p for p, _ in rows]), np.array([[v, 1.0] for _, v in rows])
    for merges in ("first", "last", "mean"):
        found = in_places(values, places, 9, merges)
        for place in range(9):
            here = [v for p, v in rows if p == place]
            there = [v for v in here if not math.isnan(v)]
            wanted = {"first": here[:1], "last": here[-1:], "mean": [sum(there) / len(there)] if there else []}[merges]
            np.testing.assert_allclose(found[place, 0], wanted[0] if wanted else math.nan, atol=1e-12)
            assert math.isnan(found[place, 1]) == (not here)


@given(st.integers(-(2**62), 2**62))
def test_features_are_the_calendars(at: int) -> None:
    moment = datetime.fromtimestamp(at // SECOND, tz=timezone.utc)
    wanted = {
        "minute": (moment.minute, 60), "hour": (moment.hour, 24), "weekday": (moment.weekday(), 7),
        "day": (moment.day - 1, 31), "yearday": (moment.timetuple().tm_yday - 1, 366), "month": (moment.month - 1, 12),
    }  # fmt: skip
    (numbers,) = time_features(np.array([at]), FEATURES, "number")
    (circle,) = time_features(np.array([at]), FEATURES, "circle")
    for place, name in enumerate(FEATURES):
        value, period = wanted[name]
        assert numbers[place] == pytest.approx(value / (period - 1) - 0.5)
        angle = 2 * math.pi * value / period
        assert circle[2 * place : 2 * place + 2] == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-12)
    assert (np.abs(numbers) <= 0.5).all()


def test_filled_rows_have_their_time_but_no_mark() -> None:
    hour = 3600 * SECOND
    placing = Placing(Regular("nan"), hour, 0, 1)
    taken = Taken(np.array([[1.0], [2.0]]), np.array([hour, 4 * hour]), np.array([1, 1]))
    values, marks = made_piece(taken, Making(5, placing, features=("hour",)))
    np.testing.assert_allclose(values[:, 0], [np.nan, 1, np.nan, np.nan, 2])
    np.testing.assert_allclose(values[:, 1], np.arange(5) / 23 - 0.5, rtol=1e-6)
    assert marks is not None and marks.tolist() == [0, 1, 0, 0, 1]
