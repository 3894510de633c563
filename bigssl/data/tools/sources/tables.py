"""Tables of pictures, captions and texts for `bigssl shards pack`: .csv and .tsv files with a header."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bigssl.config import limits
from bigssl.data.errors import DataError
from bigssl.data.kinds.decode import IMAGES
from bigssl.data.shards import leftout
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.tools.classes import LABEL, Labels
from bigssl.data.tools.sources.base import Item, Keys, json_bytes, read_file, unusable, version
from bigssl.data.tools.sources.text import decoded, physical_lines, refuse_separator
from bigssl.data.tools.templates import columns_of, fill_in

_MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>"}  # lower case; how programs write that there is nothing
Row = Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """How rows of a .tsv or .csv file with a header become samples. Texts in braces are columns, plus {variant}.

    images: variant -> path of the picture below `root`; one sample each, or one of text only where there are none.
    key, text, group: templates. Without a key it is the path of the picture without its extension where that can be
    and is unique, else a running number; the group is then the picture. Without a text there is no txt. meta: columns
    that go into the field json; `variant` names its key there. label: the columns that become `label`
    there.
    """

    images: Mapping[str, str]
    key: str | None = None
    text: str | None = None
    group: str | None = None
    meta: Sequence[str] = ()
    variant: str = "variant"
    label: Labels | None = None

    def columns(self, there: Row) -> list[str]:
        """The columns that it names."""
        templates = [*self.images.values(), *filter(None, (self.key, self.text, self.group))]
        found = [column for template in templates for column in columns_of(template, there)]
        return [*found, *self.meta, *(self.label.columns if self.label else ())]


class Captioned(NamedTuple):
    """A picture (or none) and what the table says about it."""

    picture: str | None
    text: str | None
    facts: bytes

    def load(self) -> dict[str, bytes]:
        """The picture's bytes as they are, txt where there is a text, and json where there are facts."""
        fields = {} if self.text is None else {"txt": self.text.encode()}
        if self.picture is not None:
            fields[Path(self.picture).suffix[1:].lower()] = read_file(self.picture)
        return fields | ({"json": self.facts} if self.facts else {})

    def stamp(self) -> object:
        """Which version of picture and row."""
        picture = None if self.picture is None else version(self.picture)
        return [picture, self.text, self.facts.decode()]


def from_table(
    path: Path, root: Path, table: Table, left_out: LeftOut | None = None, note: Callable[[str], None] = lambda _: None
) -> Iterator[Item]:
    """Samples of each row, one per image variant: the picture's bytes as they are, txt, json. left_out: is told which
    texts and labels are empty or stand for a missing value (they are taken). note: is told what the keys are made of
    where no template says it. Raises DataError naming the line."""
    keys, named, no_images = Keys(), _named(path, table, note), dict[str, str | None]({"": None})
    for number, (line, row) in enumerate(rows(path)):
        if number == 0:
            _refuse_unknown(path, table, row)
        for variant, image in (table.images or no_images).items():
            cells = {**row, "variant": variant}
            key, group = named(number, cells, image)
            keys.add(key, f"table {path}", line)
            label = table.label.of(row, f"table {path}, line {line}") if table.label else None
            sample = _sample(path, line, root, table, cells, image, label)
            if left_out is not None and sample.text is not None and sample.text.strip().lower() in _MISSING:
                left_out.add(leftout.MISSING, f"{path.name}, line {line}: {sample.text}")
            if left_out is not None and any(each.strip().lower() in _MISSING for each in _names(label)):
                left_out.add(leftout.UNNAMED, f"{path.name}, line {line}: {label}")
            yield Item(key, group, sample.load, sample.stamp, label)


def _names(label: object) -> list[str]:
    return [str(each) for each in (label if isinstance(label, list) else [] if label is None else [label])]


def _named(path: Path, table: Table, note: Callable[[str], None]) -> Callable[[int, Row, str | None], tuple[str, str]]:
    """What gives key and group of a row (its number, its cells) and an image."""
    if table.key is not None:
        key, group = table.key, table.group or table.key
        return lambda number, row, image: (_filled(key, row), _filled(group, row))
    first, by_picture = next(iter(table.images.values()), None), _pictures_name_samples(path, table)
    note(f"keys: {'the paths of the pictures' if by_picture else f'{path.stem}-NUMBER'}; --key names others")

    def named(number: int, row: Row, image: str | None) -> tuple[str, str]:
        numbered = f"{path.stem}-{number:06d}" + (f"-{row['variant']}" if len(table.images) > 1 else "")
        key = _stem(_filled(image, row)) if by_picture and image else numbered
        return key, _filled(table.group, row) if table.group else _stem(_filled(first, row)) if first else key

    return named


def _pictures_name_samples(path: Path, table: Table) -> bool:
    seen: set[str] = set()
    for number, (_, row) in enumerate(rows(path)):
        if number == 0:
            _refuse_unknown(path, table, row)
        for variant, image in table.images.items():
            key = _stem(_filled(image, {**row, "variant": variant}))
            if key in seen or unusable(key):
                return False
            seen.add(key)
    return bool(table.images)


def _refuse_unknown(path: Path, table: Table, row: Row) -> None:
    there = {**row, "variant": ""}
    unknown = [column for column in table.columns(there) if column not in there]
    if unknown:
        raise DataError(f"table {path}: no column {unknown[0]!r}; it has {', '.join(sorted(row))}")


def _filled(template: str, row: Row) -> str:
    return fill_in(template, row, row.__getitem__)


def _stem(picture: str) -> str:
    return picture.removesuffix(Path(picture).suffix)


def _sample(
    path: Path, line: int, root: Path, table: Table, row: Row, image: str | None, label: object
) -> Captioned:  # fmt: skip
    picture = None if image is None else _filled(image, row)
    if picture is not None and Path(picture).suffix[1:].lower() not in IMAGES:
        raise DataError(f"table {path}, line {line}: {picture!r} is no picture; allowed are {', '.join(IMAGES)}")
    facts: dict[str, object] = {column: row[column] for column in table.meta}
    facts |= {} if label is None else {LABEL: label}
    facts |= {table.variant: row["variant"]} if len(table.images) > 1 else {}
    text = None if table.text is None else _filled(table.text, row)
    return Captioned(picture and str(root / picture), text, json_bytes(facts) if facts else b"")


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
            if path.suffix.lower() != ".tsv":
                refuse_separator(cells, lines.where)
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
