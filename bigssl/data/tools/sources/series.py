"""Series for `bigssl shards pack`: .ts files, csv files of one series each, windows of long tables."""

from __future__ import annotations

import csv
import io
import json
import string
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.tools.channels import cells_of, channels, header_of, number
from bigssl.data.tools.classes import LABEL
from bigssl.data.tools.parts import held_rows
from bigssl.data.tools.sources.base import Item, Stretch, json_bytes
from bigssl.data.tools.sources.text import LineFile, document_lines, line_file


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


class TsLine(NamedTuple):
    """One series of a .ts file."""

    file: LineFile
    number: int
    offset: int
    length: int
    labelled: bool
    labels: bool = True

    def load(self) -> dict[str, bytes]:
        """npy, and json {"label"} where labels are there and wanted."""
        line = self.file.text(self.offset, self.length, self.number)
        values, label = parse_series(f"{self.file.path}, line {self.number}", line, self.labelled)
        said = self.labelled and self.labels
        return {"npy": _npy(values)} | ({"json": json_bytes({LABEL: label})} if said else {})

    def stamp(self) -> object:
        """Which version of the file."""
        return [self.file.version, self.offset, self.labels]


def from_series(path: Path, stem: str | None = None, labels: bool = True) -> Iterator[Item]:
    """The .ts format of the UEA & UCR archive: samples `STEM-000000` with npy (float32 [T, C]) and, where `labels` are
    wanted, json {"label"}."""
    labelled, count, file = False, 0, line_file(path)
    for line in document_lines(path):
        text = line.data.strip()
        if text.lower().startswith(b"@classlabel"):
            labelled = text.split()[1].lower() == b"true"
        elif text[:1] not in (b"#", b"@"):
            key = f"{path.stem if stem is None else stem}-{count:06d}"
            series = TsLine(file, line.number, line.offset, len(line.data), labelled, labels)
            yield Item(key, key, series.load, series.stamp)
            count += 1


def parse_series(where: str, line: str, labelled: bool) -> tuple[np.ndarray, str]:
    """(float32 [T, C], label) of one line `v,v,...:v,v,...:label`; `?` is NaN. Raises DataError naming `where`."""
    parts = line.strip().split(":")
    label = parts.pop().strip() if labelled else ""
    try:
        channels = [[number(v) for v in part.split(",")] for part in parts]
    except ValueError as error:
        raise DataError(f"{where}: {error}; values are numbers or '?'") from error
    lengths = Counter(map(len, channels))
    if len(lengths) != 1:
        raise DataError(f"{where}: channels of lengths {sorted(lengths)}; they must be equal")
    return np.asarray(channels, dtype=np.float32).T.copy(), label


@dataclass(frozen=True)
class Windows:
    """How a csv table with one row per time becomes series [T, C].

    columns: the channels, in this order (default: all but `by`). by: a column; adjacent rows of equal value there are
    one series. window, stride: cut each series into pieces of `window` rows that begin every `stride` rows (default:
    window); the last piece begins earlier where it must, so that no row is left out; a shorter series stays whole.
    held_out: this share of the rows at the end of each series is cut into pieces of its own, none of which shares a
    row with the others, where both sides hold one. marks: a column of 0 and 1 that is no channel but says of each row
    whether it is anomalous.
    """

    columns: Sequence[str] = ()
    by: str | None = None
    window: int | None = None
    stride: int | None = None
    held_out: float = 0.0
    marks: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("window", self.window), ("stride", self.stride)):
            if value is not None and value < 1:
                raise DataError(f"--{name} {value}: 1 or more rows are allowed")
        if self.stride is not None and self.window is None:
            raise DataError(f"--stride {self.stride}: has no effect without --window")
        if self.marks in (self.by, *self.columns) and self.marks is not None:
            raise DataError(f"--label {self.marks}: is also in --columns or --by; allowed: a column of its own")

    def begins(self, rows: int) -> list[int]:
        """First rows of the pieces of a series of `rows` rows, of which none are held out."""
        if self.window is None or rows <= self.window:
            return [0]
        last = rows - self.window
        found = list(range(0, last + 1, self.stride or self.window))
        return found if found[-1] == last else [*found, last]

    def pieces(self, rows: int) -> list[tuple[int, int]]:
        """(first row, number of rows) of the pieces of a series of `rows` rows."""
        window = rows if self.window is None else self.window
        cut = rows - held_rows(rows, self.held_out)
        parts = [(0, cut), (cut, rows)] if min(cut, rows - cut) >= window else [(0, rows)]
        cuts = [(first, stop, begin) for first, stop in parts for begin in self.begins(stop - first)]
        return [(first + begin, min(window, stop - first)) for first, stop, begin in cuts]


class _Lines:
    """The lines of a table, blank ones as empty, since they are no rows; counted, since each other one is a row."""

    def __init__(self, text: str) -> None:
        self._lines, self.rows = io.StringIO(text), 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            blank = not line.strip(string.whitespace)  # as bytes see it, in which rows were counted
            self.rows += not blank
            yield "\n" if blank else line


class Rows(NamedTuple):
    """Adjacent lines of a csv file of `width` columns; `columns`: the places of the channels in a line; `marks`: that
    of the marks."""

    file: LineFile
    first_line: int
    offset: int
    length: int
    columns: tuple[int, ...]
    width: int
    facts: bytes = b""
    marks: int | None = None

    def load(self) -> dict[str, bytes]:
        """npy, float32 [T, C], and json where there are facts or marks. Raises DataError naming the line."""
        text = self.file.text(self.offset, self.length, self.first_line)
        lines, values, marks = _Lines(text), list[list[float]](), list[int]()
        reader = csv.reader(lines, strict=True)
        try:
            for row in filter(None, reader):
                values.append(self._values(row))
                marks += [] if self.marks is None else [_mark(row[self.marks])]
                if len(values) != lines.rows:
                    raise ValueError("a cell holds a line break, but each line is taken for a row")
        except (ValueError, csv.Error) as error:
            where = f"{self.file.path}, line {self.first_line + reader.line_num - 1}"
            raise DataError(f"{where}: {error}; mend it, or choose the columns of numbers with --columns") from error
        said = self.facts
        if self.marks is not None:
            said = json_bytes((json.loads(self.facts) if self.facts else {}) | {LABEL: marks})
        return {"npy": _npy(np.asarray(values, dtype=np.float32))} | ({"json": said} if said else {})

    def _values(self, row: list[str]) -> list[float]:
        if len(row) != self.width:
            raise ValueError(f"{len(row)} cells, not {self.width} columns as in the header")
        return [number(row[column]) for column in self.columns]

    def stamp(self) -> object:
        """Which version of the file, and what is taken from it."""
        return [self.file.version, self.offset, self.length, self.columns, self.facts.decode(), self.marks]


def _mark(cell: str) -> int:
    value = number(cell)
    if value not in (0, 1):
        raise ValueError(f"{cell!r} in the column of --label; allowed: 0 and 1")
    return int(value)


def from_csv(
    path: Path, stem: str, how: Windows, label: str | None = None, note: Callable[[str], None] = lambda _: None
) -> Iterator[Item]:
    """Series of a csv file: one, or one per value of `how.by`, whole or in windows, with npy float32 [T, C]; the json
    of windows has `series`, `start` and `rows` as of `Stretch`, and `label` where there is one: that of the folder, or
    the list of the marks of its rows.

    Keys: STEM, `STEM-VALUE`, with `-000000` behind it where there are windows. The pieces of a series are one group.
    The first line names the columns; if all of it are numbers, the columns are called 0, 1, ... A cell
    with a line break is refused when its rows are loaded. note: is told which columns are no channels, and which look
    like clocks.
    """
    file, names, table = line_file(path), *_read_rows(path, how.by)
    columns = channels(path, names, how.columns, (how.by, how.marks), note)
    marks = None if how.marks is None else _place_of_marks(path, names, how.marks, label)
    for value, first, stop in table.runs:
        series = stem if how.by is None else f"{stem}-{value}"
        for count, piece in enumerate(how.pieces(stop - first)):
            begin, offset = first + piece[0], table.offsets[first + piece[0]]
            length, stretch = table.offsets[begin + piece[1]] - offset, Stretch(series, *piece)
            facts = ({} if how.window is None else stretch._asdict()) | ({} if label is None else {LABEL: label})
            said = json_bytes(facts) if facts else b""
            rows = Rows(file, table.lines[begin], offset, length, columns, len(names), said, marks)
            yield Item(series if how.window is None else f"{series}-{count:06d}", series, rows.load, rows.stamp, label,
                       stretch if how.held_out else None)  # fmt: skip


def _place_of_marks(path: Path, names: list[str], column: str, label: str | None) -> int:
    if column not in names:
        raise DataError(f"{path}: no column {column!r}; it has {', '.join(names)}")
    if label is not None:
        raise DataError(f"{path}: --label {column} and the class {label!r} of its folder would both be `{LABEL}`; move "
                        "the file out of its class folder, or leave --label out")  # fmt: skip
    return names.index(column)


class _Table(NamedTuple):
    """Byte of each row and of the end, number of the line of each row, and the runs (value, first row, stop)."""

    offsets: array[int]
    lines: array[int]
    runs: list[tuple[str, int, int]]


def _read_rows(path: Path, by: str | None) -> tuple[list[str], _Table]:
    names: list[str] = []
    table = _Table(array("q"), array("q"), [])
    end = 0
    for line in document_lines(path):
        end = line.offset + len(line.data)
        if not names or by is not None:
            cells = cells_of(line.data, path, line.number)
        if not names:
            names = header_of(cells, f"{path}, line {line.number}")
            if names == cells:
                continue
        value = "" if by is None else _value(path, line.number, names, cells, by)
        row = len(table.offsets)
        if not table.runs or table.runs[-1][0] != value:
            table.runs.append((value, row, row))
        table.runs[-1] = (value, table.runs[-1][1], row + 1)
        table.offsets.append(line.offset)
        table.lines.append(line.number)
    if not table.runs:
        raise DataError(f"{path}: no rows, so no series")
    table.offsets.append(end)
    return names, table


def _value(path: Path, number: int, names: list[str], cells: list[str], by: str) -> str:
    try:
        return cells[names.index(by)]
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}, line {number}: no column {by!r}; columns are {', '.join(names)}") from error
