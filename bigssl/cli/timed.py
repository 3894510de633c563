"""`bigssl shards pack --as series`: the options of series, and what reads their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bigssl.cli.fields import Fields
from bigssl.data.errors import DataError
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.sources.parquet import from_parquet
from bigssl.data.tools.sources.rows import from_csv
from bigssl.data.tools.sources.series import Timing
from bigssl.data.tools.sources.ts import from_series
from bigssl.data.tools.timed.clock import SECOND
from bigssl.data.tools.timed.grid import Regular
from bigssl.data.tools.timed.making import FEATURES
from bigssl.data.tools.timed.tally import SeriesCount
from bigssl.data.tools.timed.windows import Windows

TABLES = (".csv", ".parquet")
OF_TIME = ("gaps", "repeats", "resample", "time_features")  # options that need the time of each row
SERIES_ONLY = (
    "columns", "by", "window", "stride", "split_by", "margin", "time", "time_format", "missing", "short", "returns",
    "prices", "time_code", *OF_TIME,
)  # fmt: skip


def refuse_idle_series(fields: Fields, held_out: float) -> None:
    """Raises DataError for options of series that would do nothing beside the others."""
    if fields.split_by is not None and (not held_out or (fields.split_by == "series" and fields.window is None)):
        raise DataError(f"--split-by {fields.split_by}: has no effect without --split and --window")
    needs = {
        "margin": (_by_time(fields) and held_out > 0, "--split by time"),
        "short": (fields.window is not None, "--window"),
        "prices": (fields.returns is not None, "--returns"),
        "time_code": (fields.time_features is not None, "--time-features"),
        "time_format": (fields.time != "none", "a time"),
    }
    for option, (useful, other) in needs.items():
        if getattr(fields, option) is not None and not useful:
            raise DataError(f"--{option.replace('_', '-')} {getattr(fields, option)}: has no effect without {other}")
    timed = [option for option in OF_TIME if getattr(fields, option) is not None]
    if timed and fields.time == "none":
        raise DataError(f"--{timed[0].replace('_', '-')}: has no effect with --time none")


def _by_time(fields: Fields) -> bool:
    return fields.split_by == "time" or (fields.split_by is None and fields.window is not None)


class SeriesFiles:
    """Reads files of series (`kind`: series, ts) by the options of `fields`. held_out: the fraction of --split. Raises
    DataError."""

    def __init__(self, kind: str, fields: Fields, note: Callable[[str], None], held_out: float) -> None:
        self._kind = kind
        self._note, self._count = note, SeriesCount()
        self._labels = fields.labels == "names"
        held_out = held_out if _by_time(fields) else 0.0
        if fields.stride is not None and fields.window is not None and fields.stride > fields.window > 0:
            note(f"--stride {fields.stride} is more than --window {fields.window}: rows between windows are left out")
        self._how = Windows(names_in("columns", fields.columns), fields.by, fields.window, fields.stride, held_out,
                            fields.label, fields.margin or 0)  # fmt: skip
        regular = Regular(fields.gaps or "refuse", fields.repeats or "refuse", _nanoseconds(fields.resample),
                          fields.returns is not None)  # fmt: skip
        self._timing = Timing(
            fields.time, fields.time_format, regular, fields.missing or "nan", fields.short or "keep", fields.returns,
            names_in("prices", fields.prices), _features(fields.time_features), fields.time_code or "number",
            tuple(option.replace("_", "-") for option in OF_TIME if getattr(fields, option) is not None),
        )  # fmt: skip

    def read(self, path: Path, stem: str, label: str | None) -> Iterator[Item]:
        """The samples of one file; stem: first part of their keys."""
        if self._kind == "ts":
            return from_series(path, stem, self._labels, self._count)
        from_table = from_parquet if path.suffix.lower() == ".parquet" else from_csv
        return from_table(path, stem, self._how, label, self._note, self._timing, self._count)

    def lines(self) -> Iterator[str]:
        """What there is to be said of all that was read."""
        yield from self._count.lines(self._timing.regular)
        if self._how.margin:
            yield f"margin: the {self._how.margin} rows before those that are held out are on neither side"


def _nanoseconds(seconds: float | None) -> int | None:
    if seconds is None:
        return None
    if not 1e-9 <= seconds < 1e9:
        raise DataError(f"--resample {seconds:g}: allowed: seconds from 1e-9 to 1e9")
    return round(seconds * SECOND)


def names_in(option: str, text: str | None) -> tuple[str, ...]:
    """The names in A,B,C; none where there is no text. Raises DataError where nothing is in it."""
    words = tuple(word for word in (text or "").split(",") if word)
    if text is not None and not words:
        raise DataError(f"--{option} {text!r}: names separated by commas are needed")
    return words


def _features(text: str | None) -> tuple[str, ...]:
    found = names_in("time-features", text)
    unknown = [name for name in found if name not in FEATURES]
    if unknown:
        raise DataError(f"--time-features {unknown[0]}: allowed: {', '.join(FEATURES)}")
    return found
