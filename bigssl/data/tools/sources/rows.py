"""csv files with a row per time: where their rows are, and what is in them."""

from __future__ import annotations

import csv
import io
import string
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.tools.channels import MISSING, cells_of, first_cells, header_of, number
from bigssl.data.tools.sources.base import Item
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
from bigssl.data.tools.sources.text import Line, LineFile, decoded, document_lines, line_file
from bigssl.data.tools.timed.clock import TimeFormat
from bigssl.data.tools.timed.making import Taken
from bigssl.data.tools.timed.tally import SeriesCount
from bigssl.data.tools.timed.windows import Windows


class _Lines:
    """The lines of a table, blank ones as empty, since they are no rows; counted, since each other one is a row."""

    def __init__(self, text: str) -> None:
        self._lines, self.rows = io.StringIO(text), 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            blank = not line.strip(string.whitespace)  # as bytes see it, in which rows were counted
            self.rows += not blank
            yield "\n" if blank else line


class CsvRows(NamedTuple):
    """Adjacent lines of a csv file of `width` columns; `channels`, `marks`, `time`: places in a line."""

    file: LineFile
    first_line: int
    offset: int
    length: int
    channels: tuple[int, ...]
    width: int
    marks: int | None = None
    time: int | None = None
    clock: TimeFormat | None = None

    def read(self) -> Taken:
        """The rows. Raises DataError naming the line."""
        text = self.file.text(self.offset, self.length, self.first_line)
        lines, values, marks, times = _Lines(text), list[list[float]](), list[int](), list[int]()
        reader = csv.reader(lines, strict=True)
        try:
            for row in filter(None, reader):
                values.append(self._values(row))
                marks += [] if self.marks is None else [_mark(row[self.marks])]
                times += [] if self.time is None or self.clock is None else [self.clock.nanoseconds(row[self.time])]
                if len(values) != lines.rows:
                    raise ValueError("a cell holds a line break, but each line is taken for a row")
        except (ValueError, csv.Error) as error:
            where = f"{self.file.path}, line {self.first_line + reader.line_num - 1}"
            raise DataError(f"{where}: {error}; mend it, or choose the columns of numbers with --columns") from error
        return Taken(
            np.asarray(values), None if self.time is None else np.asarray(times, dtype=np.int64),
            None if self.marks is None else np.asarray(marks, dtype=np.int64),
        )  # fmt: skip

    def _values(self, row: list[str]) -> list[float]:
        if len(row) != self.width:
            raise ValueError(f"{len(row)} cells, not {self.width} columns as in the header")
        return [number(row[column]) for column in self.channels]

    def named(self, row: int) -> str:
        """`f.csv, line 7`, of the row 0, 1, ... of these."""
        lines = self.file.text(self.offset, self.length, self.first_line).split("\n")
        filled = [at for at, line in enumerate(lines) if line.strip(string.whitespace)]
        return f"{self.file.path}, line {self.first_line + filled[row]}"

    def stamp(self) -> object:
        """Which version of the file, and what is taken from it."""
        return [self.file.version, self.offset, self.length, self.channels, self.marks, self.time, self.clock]


def _mark(cell: str) -> int:
    value = number(cell)
    if value not in (0, 1):
        raise ValueError(f"{cell!r} in the column of --label; allowed: 0 and 1")
    return int(value)


def from_csv(
    path: Path, stem: str, how: Windows, label: str | None = None, note: Note = lambda _: None,
    timing: Timing = PLAIN, count: SeriesCount | None = None,
) -> Iterator[Item]:  # fmt: skip
    """Series of a csv file, see `pieces_of`.

    The first line names the columns; if all of it are numbers, the columns are called 0, 1, ... A cell
    with a line break is refused when its rows are loaded. note: is told which columns are no channels, and which look
    like clocks. count: what is to be said of the series is added there. Raises DataError.
    """
    names = _header(path)
    columns = series_columns(path, names, first_cells(path, names), how, timing, label, note)
    table = _read_rows(path, columns, how.by, timing)
    yield from pieces_of(table, stem, how, timing, label, SeriesCount() if count is None else count)


def _header(path: Path) -> list[str]:
    line = next(document_lines(path), None)
    if line is None:
        raise DataError(f"{path}: no rows, so no series")
    return header_of(cells_of(line.data, path, line.number), f"{path}, line {line.number}")


class _Offsets(NamedTuple):
    """Byte of each row and of the end, number of the line of each row."""

    offsets: array[int]
    lines: array[int]


def _read_rows(path: Path, columns: Columns, by: str | None, timing: Timing) -> SeriesTable:
    at, times, runs, seen, end = _Offsets(array("q"), array("q")), array("q"), list[OneSeries](), list[_Seen](), 0
    needed, header = by is not None or columns.time is not None or timing.missing == "refuse", True
    for line in document_lines(path):
        end = line.offset + len(line.data)
        if header:
            header = False
            if tuple(cells_of(line.data, path, line.number)) == columns.names:
                continue
        cells = _cells(path, line, needed)
        value = "" if by is None else _value(path, line.number, columns.names, cells, by)
        row = len(at.offsets)
        if not runs or runs[-1].value != value:
            runs.append(OneSeries(value, row, row))
            seen.append(_Seen(columns, cells))
        runs[-1].stop = row + 1
        seen[-1].add(cells, f"{path}, line {line.number}", timing.missing)
        if columns.time is not None:
            times.append(_time(path, line.number, columns, cells))
        at.offsets.append(line.offset)
        at.lines.append(line.number)
    if not runs:
        raise DataError(f"{path}: no rows, so no series")
    at.offsets.append(end)
    for run, each in zip(runs, seen, strict=True):
        run.missing, run.constant = each.missing, each.constant(run.stop - run.first)
    found = None if columns.time is None else np.frombuffer(times, dtype=np.int64)
    return SeriesTable(columns, runs, found, partial(_reader, line_file(path), columns, at),
                       lambda row: f"{path}, line {at.lines[row]}")  # fmt: skip


def _reader(file: LineFile, columns: Columns, at: _Offsets, first: int, stop: int) -> CsvRows:
    offset, length = at.offsets[first], at.offsets[stop] - at.offsets[first]
    return CsvRows(file, at.lines[first], offset, length, columns.channels, len(columns.names), columns.marks,
                   columns.time, columns.column and columns.column.clock)  # fmt: skip


def _cells(path: Path, line: Line, needed: bool) -> list[str]:
    """The cells of a line; where they are only counted, none of one that cannot be read: loading it says so."""
    if b'"' not in line.data and needed:
        return decoded(line.data, f"{path}, line {line.number}").split(",")
    try:
        return cells_of(line.data, path, line.number)
    except DataError:
        if needed:
            raise
        return []


def _value(path: Path, number: int, names: Sequence[str], cells: list[str], by: str) -> str:
    try:
        return cells[names.index(by)]
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}, line {number}: no column {by!r}; columns are {', '.join(names)}") from error


def _time(path: Path, number: int, columns: Columns, cells: list[str]) -> int:
    where = f"{path}, line {number}"
    if columns.time is None or columns.column is None or columns.time >= len(cells):
        raise DataError(f"{where}: {len(cells)} cells, not {len(columns.names)} columns as in the header")
    try:
        return columns.column.clock.nanoseconds(cells[columns.time])
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


class _Seen:
    """What the channels of a series hold: how many values lack, and which never change."""

    def __init__(self, columns: Columns, first: list[str]) -> None:
        self._columns, self._first = columns, first
        self._same = list(columns.channels) if len(first) == len(columns.names) else []
        self.missing: dict[str, int] = {}

    def add(self, cells: list[str], where: str, missing: str) -> None:
        if len(cells) != len(self._columns.names):  # loading it names the line
            self._same = []
            return
        self._same = [place for place in self._same if cells[place] == self._first[place]]
        for place in self._columns.channels:
            if cells[place].strip() in MISSING:
                name = self._columns.names[place]
                if missing == "refuse":
                    raise DataError(f"{where}: {name!r} is missing ({cells[place]!r}); allowed: --missing nan, which "
                                    "keeps it as NaN")  # fmt: skip
                self.missing[name] = self.missing.get(name, 0) + 1

    def constant(self, rows: int) -> list[str]:
        """Names of the channels that hold one number in all rows, of two or more."""
        return [self._columns.names[place] for place in self._same] if rows > 1 else []
