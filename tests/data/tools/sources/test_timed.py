"""Tables with a time become series: against pandas-like loops over all rows, csv and parquet alike."""

from __future__ import annotations

import io
import json
import pickle
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.tools.parts import by_time
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.sources.parquet import from_parquet
from bigssl.data.tools.sources.rows import from_csv
from bigssl.data.tools.sources.series import Timing
from bigssl.data.tools.timed.clock import SECOND
from bigssl.data.tools.timed.grid import Regular
from bigssl.data.tools.timed.tally import SeriesCount
from bigssl.data.tools.timed.windows import Windows

START = datetime(2024, 2, 28, 22)
WHOLE = Windows()


def read(item: Item) -> tuple[np.ndarray, dict[str, Any]]:
    item = pickle.loads(pickle.dumps(item))  # as it goes to the processes that write shards
    assert item.stamp is not None and json.dumps(item.stamp())
    fields = item.load()
    return np.load(io.BytesIO(fields["npy"])), json.loads(fields["json"])


def lines(places: list[int], minutes: int = 10) -> list[str]:
    return [f"{START + timedelta(minutes=minutes * p)},{p + 1},{(p * 7) % 5}" for p in places]


def write(folder: Path, rows: list[str], kind: str = "csv", head: str = "when,a,b") -> Path:
    path = folder / f"t.{kind}"
    if kind == "csv":
        path.write_text("\n".join([head, *rows]) + "\n")
        return path
    cells = [row.split(",") for row in rows]
    numbers = {name: [float(row[n]) if row[n] else None for row in cells] for n, name in ((1, "a"), (2, "b"))}
    when = pyarrow.array([datetime.fromisoformat(row[0]) for row in cells], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"when": when, **numbers}), path, row_group_size=7)
    return path


def items(path: Path, how: Windows = WHOLE, count: SeriesCount | None = None, **timing: Any) -> list[Item]:
    given = Timing(**{"time": None, **timing})
    source = from_csv if path.suffix == ".csv" else from_parquet
    return list(source(path, "t", how, None, lambda _: None, given, count))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_gaps_are_cut_filled_or_kept(tmp_path: Path, kind: str) -> None:
    places = [*range(5), *range(8, 20)]
    path = write(tmp_path, lines(places), kind)
    with pytest.raises(DataError, match=r"t\.(csv, line 7|parquet, row 5): a gap: 3 rows lack before 2024-02-28T23:20"):
        items(path)
    first, second = map(read, items(path, regular=Regular("cut")))
    assert [first[1], second[1]] == [
        {"series": "t", "start": 0, "rows": 5, "time": "2024-02-28T22:00:00", "step": 600},
        {"series": "t", "start": 8, "rows": 12, "time": "2024-02-28T23:20:00", "step": 600},
    ]
    np.testing.assert_array_equal(second[0][:, 0], np.arange(9, 21))
    count = SeriesCount()
    ((filled, said),) = map(read, items(path, count=count, regular=Regular("nan")))
    assert len(filled) == 20 and said == {"series": "t", "time": "2024-02-28T22:00:00", "step": 600}
    assert np.isnan(filled[5:8]).all() and not np.isnan(np.delete(filled, [5, 6, 7], 0)).any()
    assert list(count.lines(Regular("nan"))) == [
        "time: a row every 600 s in 1 series, 17 rows", "gaps: 1, filled with 3 rows of NaN (--gaps nan)"]  # fmt: skip
    ((kept, said),) = map(read, items(path, regular=Regular("keep")))
    np.testing.assert_array_equal(kept[:, 0], np.array(places) + 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=8, max_size=50, unique=True), st.integers(1, 9), st.integers(1, 9),
    st.sampled_from(["cut", "nan", "keep"]), st.sampled_from([None, "log"]), st.sampled_from(["csv", "parquet"]),
)  # fmt: skip
def test_windows_hold_the_rows_that_the_whole_holds(
    tmp_path_factory: pytest.TempPathFactory, places: list[int], window: int, stride: int, gaps: str,
    returns: str | None, kind: str,
) -> None:  # fmt: skip
    """A window that is read by itself is what is cut out of the whole series."""
    places = sorted({*range(70, 90), *places})  # most steps are one
    path = write(tmp_path_factory.mktemp("t"), lines(places), kind)
    options: dict[str, Any] = {"regular": Regular(gaps), "features": ("hour", "weekday", "minute")}
    options |= {"returns": returns, "prices": ["a"]} if returns else {}
    wholes = {(f["series"], f.get("start", int(returns is not None))): v for v, f in map(read, items(path, **options))}
    whole = np.full((200, 5), -9.0, np.float32)
    for (_, start), values in wholes.items():
        whole[start : start + len(values)] = values
    for item in items(path, Windows(window=window, stride=stride), **options):
        values, facts = read(item)
        np.testing.assert_array_equal(values, whole[facts["start"] : facts["start"] + facts["rows"]])
        if gaps != "keep":
            first = datetime.fromisoformat(facts["time"])
            assert first == START + timedelta(minutes=10 * (facts["start"] + places[0]))
            np.testing.assert_allclose(values[0, 2], first.hour / 23 - 0.5, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 60), max_size=50, unique=True), st.none() | st.integers(1, 9), st.integers(1, 9),
    st.integers(0, 12), st.sampled_from(["cut", "nan", "keep"]), st.sampled_from([0.1, 0.3, 0.5]),
)  # fmt: skip
def test_a_split_by_time_shares_no_row(
    tmp_path_factory: pytest.TempPathFactory, places: list[int], window: int | None, stride: int, margin: int,
    gaps: str, share: float,
) -> None:  # fmt: skip
    path = write(tmp_path_factory.mktemp("t"), lines(sorted({*range(70, 100), *places})))
    how = Windows(window=window, stride=stride if window else None, held_out=share, margin=margin)
    try:
        parts = by_time(items(path, how, regular=Regular(gaps)), "val", share).parts
    except DataError as error:
        assert "choose" in str(error)
        return
    rows = {part: {row for item in found for _, f in [read(item)] for row in range(f["start"], f["start"] + f["rows"])}
            for part, found in parts.items()}  # fmt: skip
    assert max(rows["train"]) + margin < min(rows["val"])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_means_of_equal_times(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, lines(list(range(13))), kind)
    ((values, said),) = map(read, items(path, regular=Regular(resample=1800 * SECOND)))
    np.testing.assert_allclose(values[:, 0], [2, 5, 8, 11, 13])
    assert said["step"] == 1800 and len(values) == 5
    last = Regular(resample=1800 * SECOND, last=True)
    ((values, _),) = map(read, items(path, returns="log", prices=["a"], regular=last))
    np.testing.assert_allclose(values[:, 0], np.diff(np.log([3, 6, 9, 12, 13])), rtol=1e-6)


def test_prices_become_returns_over_trading_gaps(tmp_path: Path) -> None:
    """Two weeks of days: against numpy over all rows; and their sum is the return of the whole."""
    days = [day for day in range(12) if day % 7 not in (5, 6)]
    prices = np.array([100, 101.5, 99, 99, 103.25, 110, 95, 96, 97, 98.5])
    rows = [f"{datetime(2024, 1, 1) + timedelta(days=day):%Y-%m-%d},{price},{day}"
            for day, price in zip(days, prices, strict=True)]  # fmt: skip
    path = write(tmp_path, rows, head="date,close,volume")
    ((values, said),) = map(read, items(path, returns="log", prices=["close"], regular=Regular("keep")))
    np.testing.assert_allclose(values[:, 0], np.diff(np.log(prices)), rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(values[:, 1], days[1:])  # volumes stay as they are
    assert values[:, 0].sum() == pytest.approx(np.log(prices[-1] / prices[0]), rel=1e-5)
    assert (said["time"], len(values), said["step"], said["uneven"]) == ("2024-01-02T00:00:00", 9, 86400, 1)
    first, second = map(read, items(path, returns="simple", prices=["close"], regular=Regular("cut")))
    np.testing.assert_allclose(first[0][:, 0], prices[1:5] / prices[:4] - 1, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(second[0][:, 0], prices[6:] / prices[5:-1] - 1, rtol=1e-5, atol=1e-8)
    path = write(tmp_path, ["2024-01-01,5,1", "2024-01-02,0,1"], head="date,close,volume")
    with pytest.raises(DataError, match=r"t\.csv, line 3: price 0: returns need prices above 0"):
        items(path, returns="log")[0].load()
    with pytest.raises(DataError, match="--prices open: no such channel; allowed: close, volume"):
        items(path, returns="log", prices=["open"])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_what_lacks_or_never_changes_is_counted(tmp_path: Path, kind: str) -> None:
    rows = [f"{START + timedelta(hours=n)},{'' if n % 3 else n},4" for n in range(9)]
    path, count = write(tmp_path, rows, kind), SeriesCount()
    ((values, _),) = map(read, items(path, count=count))
    assert np.isnan(values[:, 0]).sum() == 6
    said = "\n".join(count.lines(Regular()))
    assert "missing: 6 values are NaN, of a (6); --missing refuse names the first" in said
    assert "constant: b (in 1 series) never change; --columns takes others" in said
    with pytest.raises(DataError, match=r"t\.(csv, line 3|parquet, row 1): 'a' is missing"):
        items(path, missing="refuse")


def test_repeats_keep_the_one_that_the_rule_names(tmp_path: Path) -> None:
    path = write(tmp_path, ["2024-01-01,1,0", "2024-01-02,2,0", "2024-01-02,3,0", "2024-01-03,4,0"])
    for repeats, kept in (("first", [1, 2, 4]), ("last", [1, 3, 4])):
        count = SeriesCount()
        ((values, _),) = map(read, items(path, count=count, regular=Regular(repeats=repeats)))
        assert values[:, 0].tolist() == kept and count.repeats == 1
        windows = items(path, Windows(window=2, stride=1), regular=Regular(repeats=repeats))
        assert [read(item)[0][:, 0].tolist() for item in windows] == [kept[:2], kept[1:]]


def test_parquet_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match=r"t\.parquet: no parquet file"):
        items(path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"parquet files need `pip install 'bigssl\[parquet\]'`"):
        items(path)


def test_parquet_of_text_numbers_and_nulls(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    when = pyarrow.array([1_704_067_200_000, 1_704_067_260_000, None])
    columns = {"when": when, "who": ["x", "y", "z"], "a": ["1", "?", "3"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(DataError, match=r"t\.parquet, row 2: the time is missing"):
        items(path, time="when")
    pyarrow.parquet.write_table(pyarrow.table(columns).slice(0, 2), path)
    ((values, said),) = map(read, items(path, time="when"))
    np.testing.assert_array_equal(values, np.array([[1], [np.nan]], np.float32))  # what is no number is left out
    assert (said["time"], said["step"]) == ("2024-01-01T00:00:00", 60)
    with pytest.raises(DataError, match=r"row 0: column 'who': could not convert string to float: 'x'"):
        items(path, Windows(columns=["who"]))
    series = {item.key for item in items(path, Windows(by="who"), time="when")}
    assert series == {"t-x", "t-y"}


def test_short_pieces_are_kept_or_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, lines([0, 1, 2, 3, 10, 11, 20]))
    for short, lengths in (("keep", [3, 3, 2, 1]), ("drop", [3, 3])):
        count = SeriesCount()
        found = items(path, Windows(window=3), count, regular=Regular("cut"), short=short)
        assert [len(read(item)[0]) for item in found] == lengths and count.short == 2


def test_files_of_two_rates_are_refused(tmp_path: Path) -> None:
    count = SeriesCount()
    items(write(tmp_path, lines(list(range(5)))), count=count)
    with pytest.raises(DataError, match="mixed sampling rates: series 't' has a row every 600 s, 't' every 1200 s"):
        items(write(tmp_path, lines(list(range(5)), 20)), count=count)
    for folder, minutes in (("a", 10), ("b", 20)):
        (tmp_path / folder).mkdir()
        path = write(tmp_path / folder, lines(list(range(9)), minutes))
        assert read(items(path, regular=Regular(resample=1200 * SECOND))[0])[1]["step"] == 1200


@pytest.mark.parametrize(
    ("rows", "timing", "cause"),
    [
        (["2024-01-01,1,2", ",1,2"], {}, "line 3: the time is missing"),
        (["2024-01-01,1,2", "2024-01-02Z,1,2", "2024-01-03,1,2"], {}, "line 3: time '2024-01-02Z' is not written as"),
        (["1,1,2", "2,1,2"], {"asked": ("gaps",)}, "--gaps needs the time of each row, and no column is one for sure"),
        (["01/02/2024,1,2"], {"time": "when"}, "month is never guessed"),
        (["x,1,2", "2024-01-01,1,2"], {}, "could not convert|no column of numbers|line"),
    ],
)
def test_times_that_are_none_are_named(tmp_path: Path, rows: list[str], timing: dict[str, Any], cause: str) -> None:
    path = write(tmp_path, rows)
    with pytest.raises(DataError, match=rf"t\.csv.*({cause})"):
        for item in items(path, Windows(columns=["when"]) if rows[0][0] == "x" else Windows(), **timing):
            item.load()


@pytest.mark.parametrize("gaps", ["refuse", "cut", "nan"])
@pytest.mark.parametrize("window", [None, 12])
def test_months_stay_months_however_many_there_are(tmp_path: Path, gaps: str, window: int | None) -> None:
    """Equal steps of 31 days would be years off in the end; `uneven` says that no time follows from the first one."""
    months = [(year, month) for year in range(2000, 2012) for month in range(1, 13)
              if gaps == "refuse" or (year, month) != (2005, 4)]  # fmt: skip
    path = write(tmp_path, [f"{year}-{month:02d}-01,{month}" for year, month in months], head="when,a")
    found = [read(item) for item in items(path, Windows(window=window), regular=Regular(gaps), features=("month",))]
    for values, facts in found:
        there = ~np.isnan(values[:, 0])
        np.testing.assert_allclose(values[there, 1], (values[there, 0] - 1) / 11 - 0.5, atol=1e-6)
        assert facts["uneven"] > 0 and (not there[0] or int(facts["time"][5:7]) == values[0, 0])
    assert sum(len(values) for values, _ in found) >= len(months)
