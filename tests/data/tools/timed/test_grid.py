"""Equal steps by rule: every row keeps its place, every gap is counted, what no rule covers is named by its row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.tools.timed.clock import SECOND
from bigssl.data.tools.timed.grid import Placing, Regular, TimeGrid, median_step, time_grid

MINUTE = 60 * SECOND


def grid(at: Any, **rules: Any) -> TimeGrid:
    return time_grid(np.asarray(at, dtype=np.int64) * SECOND, Regular(**rules), lambda row: f"row {row}")


@st.composite
def broken(draw: Any) -> tuple[np.ndarray, int, np.ndarray]:
    """(times in seconds with jitter, step, places that are there): most steps are whole."""
    step = draw(st.integers(100, 4000))
    lengths = draw(st.lists(st.integers(2, 12), min_size=1, max_size=6))
    holes = draw(st.lists(st.integers(1, 9), min_size=len(lengths) - 1, max_size=len(lengths) - 1))
    places, at = [], 0
    for length, hole in zip(lengths, [*holes, 0], strict=True):
        places += range(at, at + length)
        at += length + hole
    jitter = draw(st.lists(st.floats(-0.01, 0.01), min_size=len(places), max_size=len(places)))
    start = draw(st.integers(0, 10**9))
    times = [round((place + early) * step) for place, early in zip(places, jitter, strict=True)]
    return start + np.array(times), step, np.array(places)


@given(broken())
def test_rows_keep_their_places(case: tuple[np.ndarray, int, np.ndarray]) -> None:
    times, step, places = case
    holes = int((np.diff(places) > 1).sum())
    if not holes:
        assert grid(times).stretches == [(0, len(places))]
    else:
        with pytest.raises(DataError, match=r"row \d+: a gap: \d+ rows lack"):
            grid(times)
    cut = grid(times, gaps="cut")
    np.testing.assert_array_equal(cut.places, places)
    assert {row for a, b in cut.stretches for row in range(a, b)} == set(places.tolist()) and cut.gaps == holes
    filled = grid(times, gaps="nan")
    assert filled.stretches == [(0, places[-1] + 1)] and filled.filled == places[-1] + 1 - len(places)
    kept = grid(times, gaps="keep")
    assert kept.stretches == [(0, len(places))] and kept.gaps == holes
    assert abs(cut.step / SECOND - step) <= 0.03 * step
    np.testing.assert_array_equal(kept.places, np.arange(len(places)))


@given(broken(), st.integers(0, 40), st.integers(1, 40))
def test_a_piece_places_its_rows_as_the_whole_does(
    case: tuple[np.ndarray, int, np.ndarray], first: int, rows: int
) -> None:
    times, _, places = case
    whole, at = grid(times, gaps="nan"), times * SECOND
    begin, stop = np.searchsorted(whole.places, (first, first + rows))
    if begin < stop:
        lead = int(whole.places[begin]) - first
        placing = Placing(Regular("nan"), whole.step, int(at[begin]) - lead * whole.step, lead)
        np.testing.assert_array_equal(placing.places(at[begin:stop]) + first, whole.places[begin:stop])
        shown = placing.times(at[begin:stop], rows)[whole.places[begin:stop] - first]
        assert (np.abs(shown - at[begin:stop]) <= 0.15 * whole.step * rows).all()


@given(st.lists(st.integers(0, 500), min_size=2, max_size=40, unique=True), st.integers(20, 90))
def test_resampled_rows_are_those_of_equal_times(at: list[int], width: int) -> None:
    times = np.sort(at)
    usual = median_step(np.diff(times))
    if usual > width * 1.1:
        with pytest.raises(DataError, match="would invent some"):
            grid(times, resample=width * SECOND)
        return
    found = grid(times, resample=width * SECOND, gaps="nan")
    np.testing.assert_array_equal(found.places, times // width - times[0] // width)
    kept = grid(times, resample=width * SECOND, gaps="keep")
    assert kept.rows == len(set((times // width).tolist()))


@pytest.mark.parametrize(
    ("times", "rules", "cause"),
    [
        ([0, 60, 30, 90], {}, "row 2: time .*00:30 comes behind .*01:00; 1 rows are out of order: .*sort"),
        ([90, 60, 30, 0], {}, "row 1: .*all rows run backwards: .*tac"),
        ([0, 60, 60, 120], {}, "row 2: time .* stands there twice, 1 such rows; allowed: --repeats first or last"),
        ([0, 60, 120, 240], {}, "row 3: a gap: 1 rows lack .*gaps in all: 1.*--gaps cut, nan .* or keep"),
        ([0, 60, 120, 270], {"gaps": "nan"}, "row 3: a gap of 150 s, which no whole number of rows fills"),
        ([0, 60, 120, 150, 210], {"gaps": "cut"}, "row 3: the row comes 30 s behind the one before"),
        ([*range(0, 1200, 60), *range(1200, 12000, 600)], {"gaps": "cut"},
         "row 21: mixed sampling rates: from here on rows come every 600 s, most come every 60 s"),
        ([0, 60, 120], {"resample": 30 * SECOND}, "rows come every 60 s, --resample 30 would invent some"),
    ],
)  # fmt: skip
def test_what_no_rule_covers_is_named(times: list[int], rules: dict[str, Any], cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        grid(times, **rules)


def test_months_and_weekends() -> None:
    months = np.arange("2020-01", "2024-01", dtype="datetime64[M]").astype("datetime64[s]").astype(np.int64)
    assert grid(months).stretches == [(0, 48)]
    days = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
    trading = days[np.is_busday(days)].astype("datetime64[s]").astype(np.int64)
    assert grid(trading, gaps="keep").gaps == 8 and len(grid(trading, gaps="cut").stretches) == 9
    assert grid(trading, gaps="nan").filled == 16
    assert grid([5]).step == 0 and grid([5, 5, 5], repeats="first").rows == 1
