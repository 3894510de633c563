"""Cells of a time column -> nanoseconds since 1970; how they are written is found where it can be one way only.

01/02/2026 is two days: which of its numbers is the month is never guessed. Times with an offset (`Z`, `+02:00`) become
UTC; without one they are taken as they stand, so an hour that a clock was put back comes twice, and is named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from bigssl.data.errors import DataError

SECOND = 10**9  # nanoseconds
UNITS = {"s": SECOND, "ms": 10**6, "us": 10**3, "ns": 1}  # what numbers may count
ISO = "iso"  # 2026-01-31, 2026/1/31 9:05, 2026-01-31T09:05:00.25+01:00
NAMES = ("time", "timestamp", "date", "datetime", "ts", "epoch", "unix", "unixtime", "time_stamp", "date_time")
_ISO = re.compile(
    r"(\d{4})([-/])(\d{1,2})\2(\d{1,2})"
    r"(?:[T ](\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?\s*(Z|[+-]\d{2}:?\d{2})?)?"
)
_TURNED = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(?:([T ])(\d{1,2}):(\d{2})(:\d{2})?)?")
_EPOCH = ((10**8, 10**11, "s"), (10**11, 10**14, "ms"), (10**14, 10**17, "us"), (10**17, 10**20, "ns"))  # 1973 on
_DAY = 86400 * SECOND
_FIRST = date(1970, 1, 1).toordinal()
_LIMIT = 1 << 63


class TimeFormat(NamedTuple):
    """How times are written. format: `iso`, a unit of numbers, or codes of strptime. zoned: with an offset."""

    format: str
    zoned: bool = False

    def nanoseconds(self, cell: str) -> int:
        """The time in a cell, in nanoseconds since 1970. Raises ValueError."""
        text = cell.strip()
        if not text:
            raise ValueError("the time is missing")
        found = self._of(text)
        if not -_LIMIT <= found < _LIMIT:
            raise ValueError(f"time {text!r} is outside of 1678 to 2261")
        return found

    def _of(self, text: str) -> int:
        if self.format in UNITS:
            return _counted(text, UNITS[self.format])
        if self.format == ISO:
            return _iso(text, self.zoned)
        try:
            found = datetime.strptime(text, self.format)
        except ValueError as error:
            raise ValueError(f"time {text!r} is not written as {self.format!r}") from error
        return _since(found) if found.tzinfo else _since(found.replace(tzinfo=timezone.utc))


def _since(moment: datetime) -> int:
    passed = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    return (passed.days * 86400 + passed.seconds) * SECOND + passed.microseconds * 1000


def _counted(text: str, unit: int) -> int:
    try:
        value = Decimal(text)
        return int(value * unit)
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise ValueError(f"time {text!r} is no number") from error


def _iso(text: str, zoned: bool) -> int:
    found = _ISO.fullmatch(text)
    if found is None:
        raise ValueError(f"time {text!r} is not written as YYYY-MM-DD HH:MM:SS, as the first ones are")
    year, _, month, day, hour, minute, second, fraction, zone = found.groups()
    if (zone is not None) != zoned:
        raise ValueError(f"time {text!r} is {'without' if zoned else 'with'} an offset, unlike the first ones")
    try:
        days = date(int(year), int(month), int(day)).toordinal() - _FIRST
    except ValueError as error:
        raise ValueError(f"time {text!r}: {error}") from error
    hours, minutes, seconds = int(hour or 0), int(minute or 0), int(second or 0)
    if hours > 23 or minutes > 59 or seconds > 59:
        raise ValueError(f"time {text!r}: no such time of a day")
    passed = ((hours * 60 + minutes) * 60 + seconds) * SECOND + int((fraction or "").ljust(9, "0"))
    return days * _DAY + passed - _offset(zone)


def _offset(zone: str | None) -> int:
    if zone in (None, "Z"):
        return 0
    assert zone is not None
    sign, digits = (-1 if zone[0] == "-" else 1), zone[1:].replace(":", "")
    return sign * (int(digits[:2]) * 60 + int(digits[2:])) * 60 * SECOND


def written(nanoseconds: int, zoned: bool) -> str:
    """The time as ISO 8601 has it, without zeros behind the seconds; with Z where it is UTC."""
    seconds, rest = divmod(nanoseconds, SECOND)
    moment = datetime(1970, 1, 1) + timedelta(seconds=seconds)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{moment.isoformat()}{fraction}{'Z' if zoned else ''}"


def clock_of(cells: Sequence[str], given: str | None = None) -> TimeFormat:
    """How the first cells of a column write times. given: the format of --time-format. Raises ValueError where it is
    none, cannot be told from the cells, or may be two things."""
    if given is not None:
        if given not in (*UNITS, ISO) and "%" not in given:
            raise ValueError(f"--time-format {given!r}; allowed: {', '.join(UNITS)}, {ISO}, or codes of strptime such "
                             "as '%d/%m/%Y %H:%M'")  # fmt: skip
        if "%Z" in given:  # strptime reads a name and takes the hour as it stands
            raise ValueError(f"--time-format {given!r}: %Z, the name of a zone, gives no offset; allowed: %z, of "
                             "offsets such as +0200")  # fmt: skip
        clock = TimeFormat(given, "%z" in given or (bool(cells) and given == ISO and _is_zoned(cells[0])))
        for cell in cells:
            clock.nanoseconds(cell)
        return clock
    if not cells:
        raise ValueError("holds no time in the first rows")
    iso = [cell for cell in cells if _ISO.fullmatch(cell.strip())]
    if 2 * len(iso) > len(cells):  # what is none among them is named by its line
        return TimeFormat(ISO, _is_zoned(iso[0]))
    if all(_TURNED.fullmatch(cell.strip()) for cell in cells):
        raise ValueError(_ask_which_is_the_month(cells))
    if all(_is_decimal(cell) for cell in cells):
        return TimeFormat(_unit(cells))
    raise ValueError(f"holds {cells[0]!r}, which is no time known here; say with --time-format how it is written, in "
                     "codes of strptime such as '%d %b %Y %H:%M'")  # fmt: skip


def _is_zoned(cell: str) -> bool:
    found = _ISO.fullmatch(cell.strip())
    return found is not None and found[9] is not None


def _is_decimal(cell: str) -> bool:
    try:
        return Decimal(cell.strip()).is_finite()
    except InvalidOperation:
        return False


def _unit(cells: Sequence[str]) -> str:
    """What numbers count since 1970, by their size: no two units are of one size from 1973 on."""
    values = [abs(Decimal(cell.strip())) for cell in cells]
    for low, high, unit in _EPOCH:
        if all(low <= value < high for value in values):
            return unit
    if all(len(cell.strip()) == 8 and cell.strip().isdigit() for cell in cells):
        raise ValueError(f"holds {cells[0]!r}: if that is a day, say --time-format '%Y%m%d'")
    raise ValueError(f"holds {cells[0]!r}, whose unit cannot be told; say --time-format s, ms, us or ns")


def is_turned(cells: Sequence[str]) -> bool:
    """Whether they are dates whose year comes last."""
    return bool(cells) and all(_TURNED.fullmatch(cell.strip()) for cell in cells)


def _ask_which_is_the_month(cells: Sequence[str]) -> str:
    return f"holds {cells[0]!r}: which number is the month is never guessed; say --time-format {turned_formats(cells)}"


def turned_formats(cells: Sequence[str]) -> str:
    """The formats, joined by `or`, in which all of these dates are dates."""
    found = _TURNED.fullmatch(cells[0].strip())
    assert found is not None
    mark, apart, seconds = found[2], found[5], found[8]
    behind = f"{apart}%H:%M{':%S' if seconds else ''}" if apart else ""
    both = [f"{first}{mark}{second}{mark}%Y{behind}" for first, second in (("%d", "%m"), ("%m", "%d"))]
    return " or ".join(f"'{each}'" for each in both if _reads_all(each, cells)) or "'...'"


def _reads_all(format: str, cells: Sequence[str]) -> bool:
    try:
        for cell in cells:
            TimeFormat(format).nanoseconds(cell)
    except ValueError:
        return False
    return True


class TimeColumn(NamedTuple):
    """The column of the time: its name, and how it is written."""

    name: str
    clock: TimeFormat


def find_time(where: str, first: dict[str, list[str]], wanted: str | None, given: str | None) -> TimeColumn | None:
    """The column of the time. first: the cells of the first rows, by column. wanted: the column that --time names, or
    `none`; without one, it is the only column of dates, or of seconds since 1970 under one of `NAMES`. given: as of
    `clock_of`. Raises DataError where two columns may be meant, and where `wanted` is no time."""
    if wanted == "none":
        return None
    if wanted is not None:
        if wanted not in first:
            raise DataError(f"{where}: no column {wanted!r} for --time; it has {', '.join(first)}")
        try:
            return TimeColumn(wanted, clock_of(first[wanted], given))
        except ValueError as error:
            raise DataError(f"{where}: column {wanted!r} {error}") from None
    found = [TimeColumn(name, clock) for name, cells in first.items()
             if (clock := _certain(name, cells, given)) is not None]  # fmt: skip
    if len(found) > 1:
        several = " or ".join(f"--time '{column.name}'" for column in found)
        raise DataError(f"{where}: which column is the time: {several}? (--time none: neither)")
    return found[0] if found else None


def _certain(name: str, cells: list[str], given: str | None) -> TimeFormat | None:
    """The clock of a column that can only be a time."""
    try:
        clock = clock_of(cells, given)
    except ValueError:
        return None
    if not cells or (clock.format in UNITS and name.strip().lower() not in NAMES):
        return None
    return clock
