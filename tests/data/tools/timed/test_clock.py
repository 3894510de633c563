"""Times of cells against numpy's and Python's own; what may be two days is never guessed."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.tools.timed.clock import SECOND, TimeFormat, clock_of, find_time, written

moments = st.datetimes(datetime(1700, 1, 1), datetime(2250, 1, 1))


def truth(moment: datetime) -> int:
    return int(np.datetime64(moment, "ns").astype(np.int64))


@given(moments, st.sampled_from("T "), st.sampled_from([None, "Z", "+02:00", "-0930"]))
def test_iso(moment: datetime, apart: str, zone: str | None) -> None:
    cell = f"{moment.isoformat(apart)}{zone or ''}"
    clock = clock_of([cell])
    assert clock == TimeFormat("iso", zone is not None)
    shift = {None: 0, "Z": 0, "+02:00": -7200, "-0930": 34200}[zone]
    assert clock.nanoseconds(cell) == truth(moment) + shift * SECOND
    assert clock.nanoseconds(written(clock.nanoseconds(cell), clock.zoned)) == clock.nanoseconds(cell)


@given(moments, st.sampled_from(["%d/%m/%Y %H:%M:%S", "%Y%m%d %H%M%S", "%d %b %Y %H:%M:%S", "%Y-%m-%d %H:%M:%S%z"]))
def test_given_formats_are_those_of_strptime(moment: datetime, code: str) -> None:
    moment = moment.replace(microsecond=0)
    zone = timezone(timedelta(hours=3)) if "%z" in code else timezone.utc
    cell = moment.replace(tzinfo=zone).strftime(code)
    assert clock_of([cell], code).zoned == ("%z" in code)  # written with Z, as it is UTC
    assert clock_of([cell], code).nanoseconds(cell) == truth(moment) - (3 * 3600 * SECOND if "%z" in code else 0)


@pytest.mark.parametrize("unit, per", [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_numbers_are_told_by_their_size(unit: str, per: int) -> None:
    seconds = 1_467_331_200
    clock = clock_of([str(seconds * per), str((seconds + 60) * per)])
    assert clock.format == unit and clock.nanoseconds(str(seconds * per)) == seconds * SECOND
    assert clock_of(["0.25"], "s").nanoseconds("0.25") == SECOND // 4


@pytest.mark.parametrize(
    ("cells", "given", "cause"),
    [
        (["01/02/2026"], None, "month is never guessed; say --time-format '%d/%m/%Y' or '%m/%d/%Y'"),
        (["01/02/2026", "13/02/2026"], None, "never guessed; say --time-format '%d/%m/%Y'$"),
        (["1.2.2026 09:30"], None, "'%d.%m.%Y %H:%M' or '%m.%d.%Y %H:%M'"),
        (["20260131"], None, "if that is a day, say --time-format '%Y%m%d'"),
        (["17"], None, "whose unit cannot be told; say --time-format s, ms, us or ns"),
        (["noon"], None, "no time known here; say with --time-format"),
        (["2026-02-30"], "iso", "day is out of range"),
        (["2026-02-03 24:00"], "iso", "no such time of a day"),
        (["1500-01-01"], "iso", "outside of 1678 to 2261"),
        (["2026-01-01"], "%d.%m.%Y", "is not written as '%d.%m.%Y'"),
        (["2026-01-01 UTC"], "%Y-%m-%d %Z", "gives no offset; allowed: %z"),
        (["2026-01-01"], "day", "allowed: s, ms, us, ns, iso, or codes of strptime"),
        ([], None, "holds no time"),
    ],
)
def test_what_is_no_time_or_two(cells: list[str], given: str | None, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        clock_of(cells, given)


def test_later_cells_are_written_as_the_first_ones() -> None:
    clock = clock_of(["2026-01-01 00:00"])
    for cell, cause in (("", "time is missing"), ("1/1/26", "not written as"), ("2026-01-01 00:00Z", "with an offset")):
        with pytest.raises(ValueError, match=cause):
            clock.nanoseconds(cell)


def test_the_column_of_the_time() -> None:
    dates, numbers = ["2026-01-01", "2026-01-02"], ["1467331200", "1467331260"]
    found = find_time("f", {"x": ["1"], "day": dates}, None, None)
    assert found is not None and found.name == "day"
    found = find_time("f", {"x": numbers, "Timestamp": numbers}, None, None)
    assert found is not None and found.name == "Timestamp"
    assert find_time("f", {"x": numbers}, None, None) is None  # nothing says that these are no values
    assert find_time("f", {"day": dates}, "none", None) is None
    with pytest.raises(DataError, match="which column is the time: --time 'a' or --time 'b'"):
        find_time("f", {"a": dates, "b": dates}, None, None)
    with pytest.raises(DataError, match="f: no column 'c' for --time; it has a"):
        find_time("f", {"a": dates}, "c", None)
    with pytest.raises(DataError, match="f: column 'a' holds '1', whose unit"):
        find_time("f", {"a": ["1"]}, "a", None)
