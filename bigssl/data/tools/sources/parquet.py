"""parquet files with a row per time, for `bigssl shards pack` (`pip install 'bigssl[parquet]'`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.tools.channels import MISSING, number
from bigssl.data.tools.sources.base import Item, version
from bigssl.data.tools.sources.series import (
    PLAIN,
    Columns,
    Note,
    OneSeries,
    SeriesTable,
    Timing,
    pieces_of,
    series_columns,
)
from bigssl.data.tools.sources.text import HEAD
from bigssl.data.tools.timed.clock import TimeFormat, written
from bigssl.data.tools.timed.making import Taken
from bigssl.data.tools.timed.tally import SeriesCount
from bigssl.data.tools.timed.windows import Windows

if TYPE_CHECKING:
    import pyarrow

_KEPT = 2  # row groups in memory


class ParquetRows(NamedTuple):
    """Adjacent rows [first, stop) of a parquet file. channels, marks, time: names of columns; clock: of a time that is
    written as text or number."""

    path: str
    version: list[object]
    first: int
    stop: int
    channels: tuple[str, ...]
    marks: str | None = None
    time: str | None = None
    clock: TimeFormat | None = None

    def read(self) -> Taken:
        """The rows. Raises DataError naming one."""
        others = tuple(name for name in (self.marks, self.time) if name is not None)
        table = _rows(self.path, self.version, self.first, self.stop, (*self.channels, *others))
        values = [_numbers(table, name, self.named) for name in self.channels]
        times = None
        if self.time is not None and self.clock is not None:
            times = _times(table, self.time, self.clock, self.named)
        marks = None
        if self.marks is not None:
            found = _numbers(table, self.marks, self.named)
            odd = np.flatnonzero((found != 0) & (found != 1))
            if len(odd):
                where, value = self.named(int(odd[0])), found[odd[0]]
                raise DataError(f"{where}: {value} in the column of --label; allowed: 0 and 1")
            marks = found.astype(np.int64)
        return Taken(np.stack(values, axis=1), times, marks)

    def named(self, row: int) -> str:
        """`f.parquet, row 7`, of the row 0, 1, ... of these."""
        return f"{self.path}, row {self.first + row}"

    def stamp(self) -> object:
        """Which version of the file, and what is taken from it."""
        return list(self)


def from_parquet(
    path: Path, stem: str, how: Windows, label: str | None = None, note: Note = lambda _: None,
    timing: Timing = PLAIN, count: SeriesCount | None = None,
) -> Iterator[Item]:  # fmt: skip
    """Series of a parquet file, as `from_csv` has them; a column of timestamps is a time. Rows count from 0. Raises
    DataError."""
    names, head = _head(path)
    columns = series_columns(path, names, head, how, timing, label, note)
    if how.by is not None and how.by not in names:
        raise DataError(f"{path}: no column {how.by!r}; columns are {', '.join(names)}")
    runs, times = _read_runs(path, columns, how.by, timing)
    if not runs:
        raise DataError(f"{path}: no rows, so no series")
    table = SeriesTable(columns, runs, times, partial(_reader, str(path), version(path), columns),
                        lambda row: f"{path}, row {row}")  # fmt: skip
    yield from pieces_of(table, stem, how, timing, label, SeriesCount() if count is None else count)


def _reader(path: str, file: list[object], columns: Columns, first: int, stop: int) -> ParquetRows:
    marks = None if columns.marks is None else columns.names[columns.marks]
    time = columns.column
    return ParquetRows(path, file, first, stop, columns.named, marks, time and time.name, time and time.clock)


def _opened(path: str | Path) -> pyarrow.parquet.ParquetFile:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: parquet files need `pip install 'bigssl[parquet]'`") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: no parquet file ({str(error).splitlines()[0]})") from error


def _head(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the columns, and what the first rows hold, as text."""
    with _opened(path) as file:
        names = list(file.schema_arrow.names)
        batch = next(file.iter_batches(batch_size=HEAD), None)
    cells: dict[str, list[str]] = {name: [] for name in names}
    for name in [] if batch is None else names:
        assert batch is not None
        column = batch.column(names.index(name))
        try:
            found = _as_times(column)
        except DataError as error:
            raise DataError(f"{path}: column {name!r}: {error}") from error
        if found is not None:
            zoned = getattr(column.type, "tz", None) is not None
            cells[name] = [written(int(each), zoned) for each in found[~_null(column)]]
        else:
            cells[name] = [str(each) for each in column.to_pylist() if each is not None and str(each) not in MISSING]
    return names, cells


def _read_runs(
    path: Path, columns: Columns, by: str | None, timing: Timing
) -> tuple[list[OneSeries], np.ndarray | None]:
    """The series of a file, and the times of all rows."""
    runs, seen, times, row = list[OneSeries](), list[_Channels](), list[np.ndarray](), 0
    time = columns.column
    wanted = dict.fromkeys([*columns.named, *([by] if by else []), *([time.name] if time else [])])
    with _opened(path) as file:
        for batch in file.iter_batches(columns=list(wanted)):

            def named(at: int, first: int = row) -> str:
                return f"{path}, row {first + at}"

            values = np.stack([_numbers(batch, name, named) for name in columns.named], axis=1)
            if timing.missing == "refuse" and len(bad := np.argwhere(np.isnan(values))):
                raise DataError(f"{named(int(bad[0][0]))}: {columns.named[int(bad[0][1])]!r} is missing; allowed: "
                                "--missing nan, which keeps it as NaN")  # fmt: skip
            if time is not None:
                times.append(_times(batch, time.name, time.clock, named))
            for value, first, stop in _equal(batch, by):
                if not runs or runs[-1].value != value:
                    runs.append(OneSeries(value, row + first, row + first))
                    seen.append(_Channels(columns.named))
                seen[-1].add(values[first:stop])
                runs[-1].stop = row + stop
            row += len(values)
    for run, each in zip(runs, seen, strict=True):
        run.missing, run.constant = each.missing, each.constant(run.stop - run.first)
    return runs, np.concatenate(times) if times else None


def _equal(batch: pyarrow.RecordBatch, by: str | None) -> Iterator[tuple[str, int, int]]:
    """(value, first row, stop) of adjacent rows of equal value in column `by`."""
    if by is None:
        yield "", 0, len(batch)
        return
    values = [str(each) for each in batch.column(by).to_pylist()]
    starts = [at for at in range(len(values)) if not at or values[at] != values[at - 1]]
    for first, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        yield values[first], first, stop


class _Channels:
    """What the channels of a series hold: how many values lack, and which never change."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self.missing = names, dict[str, int]()
        self._low, self._high = np.full(len(names), np.inf), np.full(len(names), -np.inf)

    def add(self, values: np.ndarray) -> None:
        for name, lacking in zip(self._names, np.isnan(values).sum(axis=0).tolist(), strict=True):
            if lacking:
                self.missing[name] = self.missing.get(name, 0) + lacking
        self._low, self._high = np.fmin(self._low, np.fmin.reduce(values)), np.fmax(self._high, np.fmax.reduce(values))

    def constant(self, rows: int) -> list[str]:
        """Names of the channels that hold one number in all rows, of two or more."""
        same = (self._low == self._high) & (rows > 1)
        return [name for name, is_same in zip(self._names, same.tolist(), strict=True)
                if is_same and name not in self.missing]  # fmt: skip


def _null(column: Any) -> np.ndarray:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=bool)


def _numbers(table: Any, name: str, named: Callable[[int], str]) -> np.ndarray:
    """float64 [n] of a column, NaN where it is null."""
    import pyarrow

    column = table.column(name)
    try:
        return np.asarray(column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
        pass
    for row, cell in enumerate(column.to_pylist()):
        try:
            float("nan") if cell is None else number(str(cell))
        except ValueError as error:
            raise DataError(f"{named(row)}: column {name!r}: {error}; choose the columns of numbers with --columns"
                            ) from error  # fmt: skip
    return np.array([float("nan") if cell is None else number(str(cell)) for cell in column.to_pylist()])


def _as_times(column: Any) -> np.ndarray | None:
    """int64 [n] nanoseconds of a column of timestamps or dates; None of others."""
    import pyarrow

    if not (pyarrow.types.is_timestamp(column.type) or pyarrow.types.is_date(column.type)):
        return None
    try:
        whole = column.cast(pyarrow.timestamp("ns", getattr(column.type, "tz", None))).cast(pyarrow.int64())
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"times outside of 1678 to 2261 ({error})") from error
    return np.asarray(whole.fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)


def _times(table: Any, name: str, clock: TimeFormat, named: Callable[[int], str]) -> np.ndarray:
    """int64 [n] nanoseconds of the column of the time. Raises DataError naming a row without one."""
    column = table.column(name)
    if len(lacking := np.flatnonzero(_null(column))):
        raise DataError(f"{named(int(lacking[0]))}: the time is missing")
    try:
        found = _as_times(column)
    except DataError as error:
        raise DataError(f"{named(0)} and after: column {name!r}: {error}") from error
    if found is not None:
        return found
    times = np.empty(len(column), dtype=np.int64)
    for row, cell in enumerate(column.to_pylist()):
        try:
            times[row] = clock.nanoseconds(str(cell))
        except ValueError as error:
            raise DataError(f"{named(row)}: {error}") from None
    return times


@lru_cache(_KEPT)
def _group(path: str, version: tuple[str, ...], group: int, columns: tuple[str, ...]) -> pyarrow.Table:
    """A row group; windows beside each other read it once. version: another one is another file."""
    with _opened(path) as file:
        return file.read_row_group(group, columns=list(columns))


def _rows(path: str, version: list[object], first: int, stop: int, columns: tuple[str, ...]) -> pyarrow.Table:
    """Rows [first, stop) of a file."""
    import pyarrow

    with _opened(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    parts = []
    for group in range(int(np.searchsorted(ends, first, side="right")), int(np.searchsorted(ends, stop)) + 1):
        begin = int(ends[group]) - sizes[group]
        whole = _group(path, tuple(map(str, version)), group, columns)
        parts.append(whole.slice(max(0, first - begin), min(stop, int(ends[group])) - max(first, begin)))
    return pyarrow.concat_tables(parts)
