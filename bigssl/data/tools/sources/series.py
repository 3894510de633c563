"""Series of tables with a row per time, for `bigssl shards pack`: which rows a sample holds, what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.npy import npy_bytes
from bigssl.data.tools.channels import channels
from bigssl.data.tools.classes import LABEL
from bigssl.data.tools.sources.base import Item, Stretch, json_bytes
from bigssl.data.tools.timed.clock import SECOND, TimeColumn, find_time, is_turned, turned_formats, written
from bigssl.data.tools.timed.grid import Placing, Regular, TimeGrid, plain_grid, time_grid
from bigssl.data.tools.timed.making import Making, NoPrice, Taken, made_piece
from bigssl.data.tools.timed.tally import SeriesCount
from bigssl.data.tools.timed.windows import Windows

Note = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """Which column is the time, and what is made of rows and times.

    time, format: see `find_time`. asked: options that need a time. missing: `nan`, or `refuse` the first. short: pieces
    shorter than a window are kept (`keep`) or left out (`drop`). returns, prices: see `Making`; without `prices` all
    channels are. features, code: of the time.
    """

    time: str | None = "none"
    format: str | None = None
    regular: Regular = Regular()
    missing: str = "nan"
    short: str = "keep"
    returns: str | None = None
    prices: Sequence[str] = ()
    features: tuple[str, ...] = ()
    code: str = "number"
    asked: tuple[str, ...] = ()


PLAIN = Timing()


@dataclass
class OneSeries:
    """Adjacent rows [first, stop) of a table that are one series. value: what tells it from others; missing: values
    that lack, by channel; constant: channels that never change."""

    value: str
    first: int
    stop: int
    missing: dict[str, int] = field(default_factory=dict)
    constant: Sequence[str] = ()


class Columns(NamedTuple):
    """Places of the columns of a table that are channels, the marks of rows, and their time."""

    names: tuple[str, ...]
    channels: tuple[int, ...]
    marks: int | None = None
    time: int | None = None
    column: TimeColumn | None = None

    @property
    def named(self) -> tuple[str, ...]:
        """The channels by name."""
        return tuple(self.names[place] for place in self.channels)


class RowReader(Protocol):
    """Adjacent rows of a table, which it reads when asked."""

    def read(self) -> Taken:
        """The rows. Raises DataError naming one."""

    def stamp(self) -> object:
        """Which version of the file, and what is taken from it."""

    def named(self, row: int) -> str:
        """What an error calls one of the rows."""


class SeriesTable(NamedTuple):
    """A table with a row per time. times: int64 [rows], where there are some; reader: of rows [first, stop); where:
    what an error calls a row."""

    columns: Columns
    runs: list[OneSeries]
    times: np.ndarray | None
    reader: Callable[[int, int], RowReader]
    where: Callable[[int], str]


class SeriesPiece(NamedTuple):
    """A sample to be: rows of a table, and what is made of them. facts: of its json."""

    rows: RowReader
    how: Making
    facts: Mapping[str, object]

    def load(self) -> dict[str, bytes]:
        """npy, float32 [T, C], and json where there are facts or marks. Raises DataError naming the row."""
        try:
            values, marks = made_piece(self.rows.read(), self.how)
        except NoPrice as error:
            raise DataError(f"{self.rows.named(error.row)}: {error}") from None
        said = dict(self.facts) | ({} if marks is None else {LABEL: marks.tolist()})
        return {"npy": npy_bytes(values)} | ({"json": json_bytes(said)} if said else {})

    def stamp(self) -> object:
        """Which version of the file, and what is made of it."""
        return [self.rows.stamp(), self.how, dict(self.facts)]


def series_columns(
    path: Path, names: Sequence[str], first: dict[str, list[str]], how: Windows, timing: Timing, label: str | None,
    note: Note,
) -> Columns:  # fmt: skip
    """What the columns `names` of a table are. first: the cells of its first rows. Raises DataError."""
    apart = {how.by, how.marks, *how.columns}
    free = {name: cells for name, cells in first.items() if name not in apart or name == timing.time}
    time = find_time(str(path), free, timing.time, timing.format)
    if time is None and timing.asked:
        raise DataError(f"{path}: --{timing.asked[0]} needs the time of each row, and no column is one for sure; say "
                        f"which with --time (it has {', '.join(names)})")  # fmt: skip
    if time is not None and time.name in apart:
        raise DataError(f"{path}: --time {time.name}: is also in --columns, --by or --label; allowed: a column of its "
                        "own")  # fmt: skip
    places = channels(path, names, how.columns, (how.by, how.marks, time and time.name), first, note)
    if time is not None and timing.time is None:
        note(f"time of a row: column {time.name!r} ({time.clock.format}); --time none takes rows as they come")
    unsure = time is None and timing.time is None
    for name in [name for name, cells in free.items() if unsure and is_turned(cells)]:
        note(f"column {name!r} may be the time, whose month is never guessed: --time {name} --time-format "
             f"{turned_formats(free[name])}")  # fmt: skip
    found = Columns(tuple(names), places, _place_of_marks(path, names, how.marks, label),
                    None if time is None else list(names).index(time.name), time)  # fmt: skip
    unpriced = [name for name in timing.prices if name not in found.named]
    if unpriced:
        raise DataError(f"{path}: --prices {unpriced[0]}: no such channel; allowed: {', '.join(found.named)}")
    return found


def _place_of_marks(path: Path, names: Sequence[str], column: str | None, label: str | None) -> int | None:
    if column is None:
        return None
    if column not in names:
        raise DataError(f"{path}: no column {column!r}; it has {', '.join(names)}")
    if label is not None:
        raise DataError(f"{path}: --label {column} and the class {label!r} of its folder would both be `{LABEL}`; move "
                        "the file out of its class folder, or leave --label out")  # fmt: skip
    return list(names).index(column)


def pieces_of(
    table: SeriesTable, stem: str, how: Windows, timing: Timing, label: str | None, count: SeriesCount
) -> Iterator[Item]:
    """Samples of a table: one series, or one per run where `how.by` is given, whole or in windows.

    Keys: STEM, `STEM-VALUE`, with `-000000` behind it where a series is in pieces. The pieces of a series are one
    group. json: `series`, `start` and `rows` as of `Stretch`, of those in pieces; `time` of the first row and `step`
    (seconds), where there is a time; `uneven`, how many steps of the series are of another length; `label`.
    """
    for run in table.runs:
        series = stem if how.by is None else f"{stem}-{run.value}"
        yield from _series(table, run, series, how, timing, label, count)


def _series(
    table: SeriesTable, run: OneSeries, series: str, how: Windows, timing: Timing, label: str | None, count: SeriesCount
) -> Iterator[Item]:
    times = None if table.times is None else table.times[run.first : run.stop]
    grid = plain_grid(run.stop - run.first) if times is None else time_grid(
        times, timing.regular, lambda row: table.where(run.first + row))  # fmt: skip
    count.add(series, grid, timing.regular)
    count.values(series, run.missing, run.constant)
    before = int(timing.returns is not None)
    stretches = [(first + before, stop) for first, stop in grid.stretches if stop - first > before]
    count.empty += len(grid.stretches) - len(stretches)
    pieces = how.pieces(stretches) if stretches else []
    numbered = how.window is not None or len(pieces) > 1
    for number, (first, rows) in enumerate(pieces):
        if how.window is not None and rows < how.window:
            count.short += 1
            if timing.short == "drop":
                continue
        begin, stop = (int(np.searchsorted(grid.places, place)) for place in (first - before, first + rows))
        if begin == stop:
            count.empty += 1
            continue
        lead = int(grid.places[begin]) - first + before
        making = _making(table.columns, timing, rows, before)
        stretch, facts = Stretch(series, first, rows), dict[str, object]()
        if times is not None:
            placing = _placing(timing.regular, grid, int(times[begin]), lead)
            making = making._replace(placing=placing)
            shown = int(placing.times(times[begin:stop], rows + before)[before])
            facts = {"series": series} | _said_time(table.columns, shown, grid.step)
            facts |= {"uneven": grid.uneven} if grid.uneven else {}
        if numbered or how.held_out or (times is not None and timing.regular.gaps == "cut"):
            facts |= stretch._asdict()
        facts |= {} if label is None else {LABEL: label}
        piece = SeriesPiece(table.reader(run.first + begin, run.first + stop), making, facts)
        yield Item(f"{series}-{number:06d}" if numbered else series, series, piece.load, piece.stamp, label,
                   stretch if how.held_out else None, margin=how.margin)  # fmt: skip


def _placing(regular: Regular, grid: TimeGrid, first: int, lead: int) -> Placing:
    """first: the time of the first row; lead: its place."""
    at = first if regular.resample is None else first // grid.step * grid.step
    return Placing(regular, grid.step, at - lead * grid.step, lead)


def _said_time(columns: Columns, start: int, step: int) -> dict[str, object]:
    assert columns.column is not None
    clock = columns.column.clock
    told = {"time": written(start, clock.zoned)}
    if not step:
        return dict(told)
    whole, rest = divmod(step, SECOND)
    return {**told, "step": step / SECOND if rest else whole}


def _making(columns: Columns, timing: Timing, rows: int, before: int) -> Making:
    named = columns.named
    priced = tuple(named.index(name) for name in timing.prices) or tuple(range(len(named)))
    return Making(rows, None, before, timing.returns, priced if timing.returns else (), timing.features, timing.code)
