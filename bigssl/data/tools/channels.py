"""Which columns of a csv table with a row per time are the channels of its series."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path

from bigssl.data.errors import DataError
from bigssl.data.tools.sources.text import HEAD, decoded, document_lines, refuse_separator

MISSING = ("", "?", "nan", "NaN", "NA")


def number(cell: str) -> float:
    """The number in a cell, NaN where it is missing. Raises ValueError."""
    if "_" in cell:  # Python reads 1_000 as a number, no table means it
        raise ValueError(f"could not convert string to float: {cell!r}")
    return float("nan") if cell.strip() in MISSING else float(cell)


def cells_of(data: bytes, path: Path, line: int) -> list[str]:
    """The cells of a line. Raises DataError."""
    try:
        return next(csv.reader([decoded(data, f"{path}, line {line}")], strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not a line of a csv file ({error})") from error


def header_of(cells: list[str], where: str) -> list[str]:
    """Names of the columns: the cells of the first line, or 0, 1, ... where all of them are numbers. Raises DataError
    for a first line of numbers and dates, which is a row."""
    refuse_separator(cells, where)
    numbers = [cell for cell in cells if cell.strip() and is_number(cell)]
    if all(map(is_number, cells)):
        return [str(place) for place in range(len(cells))]
    if numbers and all(is_number(cell) or _is_date(cell) for cell in cells):
        names = ",".join(f"NAME{place}" for place in range(len(cells)))
        raise DataError(f"{where}: a row, not the names of the columns; put a line with names before it, as {names}")
    return cells


def is_number(cell: str) -> bool:
    """Whether a cell is a number, or stands for a missing one."""
    try:
        number(cell)
    except ValueError:
        return False
    return True


def _is_date(cell: str) -> bool:
    try:
        datetime.fromisoformat(cell.strip())
    except ValueError:
        return False
    return True


def channels(
    path: Path, names: Sequence[str], wanted: Sequence[str], apart: Sequence[str | None],
    first: dict[str, list[str]], note: Callable[[str], None],
) -> tuple[int, ...]:  # fmt: skip
    """Places of the channels among the columns `names`: those that are `wanted`, or all but those `apart` and those
    that hold no number in the first rows (`first`), of which `note` is told. Raises DataError for columns that are not
    there or have no name of their own, and where none is left."""
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise DataError(f"{path}: no column {unknown[0]!r}; it has {', '.join(names)}")
    words = [name for name, cells in first.items() if cells and not any(map(is_number, cells)) and name not in apart]
    taken = list(wanted) or [name for name in names if name not in apart and name not in words]
    if not taken:
        raise DataError(f"{path}: no column of numbers, so no series; it has {', '.join(names)}")
    double = [name for name in taken if names.count(name) > 1 or not name.strip()]
    if double:
        others = ",".join(dict.fromkeys(name for name in taken if name not in double)) or "A,B"
        raise DataError(f"{path}: column {double[0]!r} has no name of its own; rename it, or give --columns {others}")
    if words and not wanted:
        note(f"left out: columns that are no numbers ({', '.join(words)}); --columns says which to take")
    clocks = [name for name in taken if not wanted and len(taken) > 1 and _is_clock(first[name])]
    for name in clocks:
        others = ",".join(other for other in taken if other != name)
        note(f"column {name!r} rises by the same step in each row, as a clock does; --columns {others} leaves it out")
    return tuple(names.index(name) for name in taken)


def first_cells(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The cells of the first rows that say something, by column. What is no row is named when it is loaded."""
    lines = islice(document_lines(path), 1, HEAD + 1)
    rows = list(csv.reader(line.data.decode(errors="replace") for line in lines))
    return {
        name: [row[place] for row in rows if place < len(row) and row[place].strip() not in MISSING]
        for place, name in enumerate(names)
    }


def _is_clock(cells: Sequence[str]) -> bool:
    if len(cells) < 3 or not all(map(is_number, cells)):
        return False
    values = [number(cell) for cell in cells]
    step = values[1] - values[0]
    return step > 0 and all(abs(b - a - step) <= 1e-6 * abs(step) for a, b in zip(values, values[1:], strict=False))
