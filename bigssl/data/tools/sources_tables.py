"""Tables of pictures and captions for `bigssl shards pack`: .csv and .tsv files with a header."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bigssl.config import limits
from bigssl.data.errors import DataError
from bigssl.data.kinds.decode import IMAGES
from bigssl.data.shards import leftout
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.tools.sources import Item, Keys, json_bytes, read_file, version
from bigssl.data.tools.sources_text import decoded, physical_lines

_MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>"}  # lower case; how programs write that there is no text


@dataclass(frozen=True)
class Table:
    """How rows of a .tsv or .csv file with a header become samples. Texts in braces are columns, plus {variant}.

    images: variant -> path of the picture below `root`; one sample each. key, text, group: templates. meta: columns
    that go into the field json; `variant` names its key there.
    """

    images: Mapping[str, str]
    key: str
    text: str
    group: str
    meta: Sequence[str] = ()
    variant: str = "variant"


class Captioned(NamedTuple):
    """A picture and what the table says about it."""

    picture: str
    text: str
    facts: bytes

    def load(self) -> dict[str, bytes]:
        """The picture's bytes as they are, txt, and json where there are facts."""
        fields = {Path(self.picture).suffix[1:].lower(): read_file(self.picture), "txt": self.text.encode()}
        return fields | ({"json": self.facts} if self.facts else {})

    def stamp(self) -> object:
        """Which version of picture and row."""
        return [version(self.picture), self.text, self.facts.decode()]


def from_table(path: Path, root: Path, table: Table, left_out: LeftOut | None = None) -> Iterator[Item]:
    """One sample per row and image variant: the picture's bytes as they are, txt, json. left_out: is told which texts
    are empty or stand for a missing value (they are taken). Raises DataError naming the line."""
    keys = Keys()
    for line, row in rows(path):
        for variant, image in table.images.items():
            item, text = _item(path, line, root, table, {**row, "variant": variant}, image)
            keys.add(item.key, f"table {path}", line)
            if left_out is not None and text.strip().lower() in _MISSING:
                left_out.add(leftout.MISSING, f"{path.name}, line {line}: {text}")
            yield item


def _item(
    path: Path, line: int, root: Path, table: Table, row: Mapping[str, str], image: str
) -> tuple[Item, str]:  # fmt: skip
    try:
        key, group, text, picture = (t.format_map(row) for t in (table.key, table.group, table.text, image))
        facts = {column: row[column] for column in table.meta}
    except KeyError as error:
        raise DataError(f"table {path}: no column {error}; it has {', '.join(sorted(row))}") from error
    except (ValueError, AttributeError, LookupError) as error:
        raise DataError(f"table {path}: no template ({error}); write columns in braces, as in {{name}}.jpg") from error
    if Path(picture).suffix[1:].lower() not in IMAGES:
        raise DataError(f"table {path}, line {line}: {picture!r} is no picture; allowed are {', '.join(IMAGES)}")
    facts |= {table.variant: row["variant"]} if len(table.images) > 1 else {}
    sample = Captioned(str(root / picture), text, json_bytes(facts) if facts else b"")
    return Item(key, group, sample.load, sample.stamp), text


class _Lines:
    """The lines of a file as csv's reader takes them. Bounds the bytes of a row, which a quote that is never closed
    would let grow to the end of the file."""

    def __init__(self, path: Path) -> None:
        self._lines, self._path = physical_lines(path, "sample_bytes"), path
        self.number = self.row_bytes = 0
        self.row_begin = 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number, self.row_bytes = line.number, self.row_bytes + len(line.data)
        if refused := limits.over("sample_bytes", self.row_bytes):
            raise DataError(f"{self.where}: a row of {self.row_bytes} bytes (a quote never closed?) refused: {refused}")
        return decoded(line.data, f"table {self._path}, line {line.number}")

    def next_row(self) -> None:
        """A row begins."""
        self.row_begin, self.row_bytes = self.number + 1, 0

    @property
    def where(self) -> str:
        """The place of the row that is being read."""
        return f"table {self._path}, line {self.row_begin}"


def rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, cells by column) of every row below the header of a .csv (RFC 4180) or .tsv file (no quotes). Lines
    without a cell are none. Raises DataError naming line and column."""
    lines = _Lines(path)
    how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix.lower() == ".tsv" else {"strict": True}
    reader = csv.reader(lines, **how)
    header: list[str] = []
    while True:
        lines.next_row()
        cells = _next(reader, lines)
        if cells is None:
            return
        if cells and not header:
            header = _header(cells, lines.where)
        elif cells:
            yield lines.row_begin, _row(header, cells, lines.where)


def _next(reader: Iterator[list[str]], lines: _Lines) -> list[str] | None:
    before = csv.field_size_limit(sys.maxsize)  # of the module, not of the reader; ours are in `_Lines` and `_row`
    try:
        return next(reader, None)
    except csv.Error as error:
        raise DataError(
            f"{lines.where}: not a row of a table ({error}); a cell with quotes or line breaks stands in quotes, its "
            "own quotes doubled"
        ) from error
    finally:
        csv.field_size_limit(before)


def _header(cells: list[str], where: str) -> list[str]:
    double = [name for name, times in Counter(cells).items() if times > 1 and name]
    if double:
        raise DataError(f"{where}: the header names {double[0]!r} twice; rename one of the columns")
    return cells


def _row(header: list[str], cells: list[str], where: str) -> dict[str, str]:
    if len(cells) != len(header):
        raise DataError(f"{where}: {len(cells)} cells, not {len(header)} columns as in the header; mend the row")
    most = limits.current().member_bytes
    for column, cell in zip(header, cells, strict=True):
        if len(cell) * 4 > most and (refused := limits.over("member_bytes", len(cell.encode()))):
            raise DataError(f"{where}, column {column!r} refused: {refused}")
    return dict(zip(header, cells, strict=True))
