"""Documents for `bigssl shards pack`: one a line, as plain text or as JSON objects."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from bigssl.config import limits
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.tools.classes import CLASSES, LABEL, Labels
from bigssl.data.tools.sources.base import Item, Keys, json_bytes, version
from bigssl.data.tools.templates import fill_in

LINE_FEED = b"\n"
HEAD = 100  # lines that are looked at where something has to be guessed


class LineFile(NamedTuple):
    """A file that is read by lines, and which version of it (see `sources.version`)."""

    path: str
    version: list[object]

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`. Raises OSError."""
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def text(self, offset: int, length: int, line: int) -> str:
        """The same as text. line: the number of the first one. Raises OSError, and DataError for what is no UTF-8."""
        return decoded(self.read(offset, length), f"{self.path}, line {line}")


class Line(NamedTuple):
    """One line: its number from 1, the byte it begins at, and its bytes."""

    number: int
    offset: int
    data: bytes


def line_file(path: Path) -> LineFile:
    """`path` as it is now."""
    return LineFile(str(path), version(path))


def decoded(data: bytes, where: str) -> str:
    """UTF-8 text; `where`: its first line, for the DataError."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line, _, number = where.rpartition(" ")
        place = f"{line} {int(number) + data[: error.start].count(LINE_FEED)}"
        byte = error.start - (data.rfind(LINE_FEED, 0, error.start) + 1)
        again = "convert it, e.g. `iconv -f LATIN1 -t UTF-8`"
        raise DataError(f"{place}: not UTF-8: byte {byte} is 0x{data[error.start]:02x}; {again}") from error


def physical_lines(path: Path, limit: str = "member_bytes") -> Iterator[Line]:
    """The lines of `path` with their ends, blank ones too, without a byte order mark. Raises DataError where one is
    longer than `limit` allows, and for UTF-16."""
    offset, number = 0, 0
    with path.open("rb") as file:
        first = file.read(len(codecs.BOM_UTF8))
        if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{path} is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`")
        if first == codecs.BOM_UTF8:
            offset = len(first)
        file.seek(offset)
        while data := file.readline(getattr(limits.current(), limit) + 1):
            number += 1
            if refused := limits.over(limit, len(data)):
                raise DataError(f"{path}, line {number} refused: {refused}")
            yield Line(number, offset, data)
            offset += len(data)


def document_lines(path: Path) -> Iterator[Line]:
    """The lines of `path` that are not blank, without their ends. Raises DataError as `physical_lines`."""
    for line in physical_lines(path):
        if line.data.strip():
            yield line._replace(data=line.data.rstrip(b"\r\n"))


def refuse_separator(cells: Sequence[str], where: str) -> None:
    """Raises DataError for the first line of a .csv table whose only cell holds what separates others."""
    found = {";": "semicolons", "\t": "tabs", "|": "bars"}
    if len(cells) == 1 and (mark := max(found, key=cells[0].count)) in cells[0]:
        how = "rename it to .tsv" if mark == "\t" else "write it anew with commas, e.g. by a program for tables"
        raise DataError(f"{where}: one column, {cells[0][:60]!r}: its cells are separated by {found[mark]} ({mark!r}), "
                        f"those of a .csv by commas; {how}")  # fmt: skip


class TextDocument(NamedTuple):
    """A line of a text file, or of a file of JSON objects when there is a template for its text.

    meta: fields of the line that the json holds. label: what it says of a line of text. labels: fields of a JSON object
    that are its label.
    """

    file: LineFile
    number: int
    offset: int
    length: int
    template: str | None = None
    meta: tuple[str, ...] = ()
    label: str | None = None
    labels: Labels | None = None

    def load(self) -> dict[str, bytes]:
        """txt, and json where fields are wanted there."""
        text = self.file.text(self.offset, self.length, self.number)
        if self.template is None:
            facts: dict[str, Any] = {} if self.label is None else {LABEL: self.label}
            return {"txt": text.encode()} | ({"json": json_bytes(facts)} if facts else {})
        record = parse_line(f"{self.file.path}, line {self.number}", text)
        fields = {"txt": record.fill(self.template, only_text=True).encode()}
        facts = {name: record.value(name) for name in self.meta}
        if self.labels and (label := record.label(self.labels)) is not None:
            facts[LABEL] = label
        return fields | ({"json": json_bytes(facts)} if facts else {})

    def stamp(self) -> object:
        """Which version of the file, and what is taken from it."""
        return [self.file.version, self.offset, self.template, self.meta, self.label, self.labels]


class Record(dict[str, Any]):
    """A JSON object of a file; asking for a field that is not there is an error that says where."""

    where = ""

    def __missing__(self, name: str) -> Any:
        raise DataError(f"{self.where}: no field {name!r}; it has {', '.join(sorted(self)) or 'none'}")

    def value(self, name: str) -> Any:
        """The field, if all that is text in it is text. Raises DataError."""
        value = self[name]
        for part in decode.strings(value):
            decode.refuse_halves(part, f"{self.where}: field {name!r}")
        return value

    def fill(self, template: str, *, only_text: bool = False) -> str:
        """`template` with fields in braces. Raises DataError for those that are neither text nor a finite number.

        only_text: a template that is one field and nothing else needs a text: a number there is no document.
        """
        numbers = not (only_text and _ONE_FIELD.fullmatch(template))
        return fill_in(template, self, lambda name: self._text(name, numbers))

    def _text(self, name: str, numbers: bool) -> str:
        value = self.value(name)
        if isinstance(value, str):
            return value
        if not numbers or not _is_number(value):
            raise DataError(f"{self.where}: field {name!r} is {json.dumps(value)[:40]}; a text is needed")
        return str(value)

    def label(self, labels: Labels) -> object | None:
        """The label that its fields say, None where it is null. Raises DataError for objects."""
        for name in labels.columns:
            value = self.value(name)
            for each in value if isinstance(value, list) and len(labels.columns) == 1 else [value]:
                if not (each is None or isinstance(each, str | bool) or _is_number(each)):
                    raise DataError(f"{self.where}: field {name!r} is {json.dumps(value)[:40]}; a label is a text or a "
                                    "number, or a list of them")  # fmt: skip
        return labels.of(self, self.where)


_ONE_FIELD = re.compile(r"\{[^{}]*\}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parse_line(where: str, text: str) -> Record:
    """The JSON object in `text`. Raises DataError naming `where`, also for a name that stands twice in an object."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, an object is needed")
    record = Record(value)
    record.where = where
    return record


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        double = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"the name {double!r} stands twice in an object")
    return found


def from_lines(path: Path, stem: str, label: str | None = None) -> Iterator[Item]:
    """Each line that is not blank is a document: samples `STEM-000000`, numbered through, with the field txt, and json
    {"label"} where there is a label."""
    file = line_file(path)
    for count, line in enumerate(document_lines(path)):
        if b"\r" in line.data and line.number == 1 and line.offset + len(line.data) >= path.stat().st_size - 1:
            raise DataError(f"{path} has one line with carriage returns in it; `tr '\\r' '\\n'` makes lines of them")
        document = TextDocument(file, line.number, line.offset, len(line.data), label=label)
        key = f"{stem}-{count:06d}"
        yield Item(key, key, document.load, document.stamp, label)


def from_jsonl(
    path: Path, stem: str, *, text: str | None = None, key: str | None = None, group: str | None = None,
    meta: Sequence[str] = (), label: Labels | None = None, labels: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[Item]:  # fmt: skip
    """Each line is a JSON object: field txt from the template `text` (default: what `text_field` finds), json from the
    fields `meta`.

    key, group: templates; without them the running number `STEM-000000` is the key and the key the group. label: the
    fields that become `label` of the json. labels: where no field is named, it is one called `label`, in the lines that
    have one. note: is told which field the text is, where that is not `text`.
    """
    file, keys = line_file(path), Keys()
    text = text_field(path, note) if text is None else text
    for count, line in enumerate(document_lines(path)):
        where = f"{path}, line {line.number}"
        named = label or (Labels((LABEL,)) if labels and b'"label"' in line.data else None)
        record = parse_line(where, decoded(line.data, where)) if key or group or named else Record()
        named = named if label or LABEL in record else None
        value = record.label(named) if named else None
        document = TextDocument(file, line.number, line.offset, len(line.data), text, tuple(meta), labels=named)
        name = record.fill(key) if key else f"{stem}-{count:06d}"
        if key:
            keys.add(name, str(path), line.number)
        yield Item(name, record.fill(group) if group else name, document.load, document.stamp, value)


def text_field(path: Path, note: Callable[[str], None] = lambda _: None) -> str:
    """The template of the field that holds the text: `text`, or the only one that the first lines fill with texts and
    that is not called as classes are. note: is told of such a one. Raises DataError where there are several or none."""
    lines = islice(document_lines(path), HEAD)
    parsed = (parse_line(where, decoded(line.data, where)) for line in lines
              if (where := f"{path}, line {line.number}"))  # fmt: skip
    first = next(parsed, None)
    if first is None or "text" in first:
        return "{text}"
    records = [first, *parsed]
    names = [name for name in records[0] if name.lower() not in CLASSES
             and all(isinstance(record.get(name), str) for record in records)]  # fmt: skip
    if len(names) != 1:
        longest = max(names or ["NAME"], key=lambda name: sum(len(record.get(name, "")) for record in records))
        there = ", ".join(sorted(records[0])) or "none"
        raise DataError(f"{records[0].where}: no field 'text'; it has {there}; name one, e.g. --text {longest}")
    note(f"text of a sample: the field {names[0]!r}, the only one of texts; --text NAME takes another")
    return f"{{{names[0]}}}"
