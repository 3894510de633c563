"""Documents for `bigssl shards pack`: one a line, as plain text or as JSON objects."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigssl.config import limits
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.tools.sources import Item, Keys, json_bytes, version

LINE_FEED = b"\n"


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


class TextDocument(NamedTuple):
    """A line of a text file, or of a file of JSON objects when there is a template for its text."""

    file: LineFile
    number: int
    offset: int
    length: int
    template: str | None
    meta: tuple[str, ...]

    def load(self) -> dict[str, bytes]:
        """txt, and json where fields are wanted there."""
        text = self.file.text(self.offset, self.length, self.number)
        if self.template is None:
            return {"txt": text.encode()}
        record = parse_line(f"{self.file.path}, line {self.number}", text)
        fields = {"txt": record.fill(self.template, only_text=True).encode()}
        return fields | ({"json": json_bytes({name: record.value(name) for name in self.meta})} if self.meta else {})

    def stamp(self) -> object:
        """Which version of the file, and what is taken from it."""
        return [self.file.version, self.offset, self.template, self.meta]


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
        try:
            return template.format_map(_Texts(self, numbers=not (only_text and _ONE_FIELD.fullmatch(template))))
        except (ValueError, AttributeError, LookupError) as error:
            raise DataError(f"{template!r} is no template ({error}); write fields in braces, as in {{text}}") from error


_ONE_FIELD = re.compile(r"\{[^{}]*\}")


class _Texts(dict[str, str]):
    def __init__(self, record: Record, numbers: bool) -> None:
        super().__init__()
        self._record, self._numbers = record, numbers

    def __missing__(self, name: str) -> str:
        value = self._record.value(name)
        if isinstance(value, str):
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not self._numbers:
            raise DataError(f"{self._record.where}: field {name!r} is {json.dumps(value)[:40]}; a text is needed")
        return str(value)


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


def from_lines(path: Path, stem: str) -> Iterator[Item]:
    """Each line that is not blank is a document: samples `STEM-000000`, numbered through, with the field txt."""
    file = line_file(path)
    for count, line in enumerate(document_lines(path)):
        if b"\r" in line.data and line.number == 1 and line.offset + len(line.data) >= path.stat().st_size - 1:
            raise DataError(f"{path} has one line with carriage returns in it; `tr '\\r' '\\n'` makes lines of them")
        document = TextDocument(file, line.number, line.offset, len(line.data), None, ())
        key = f"{stem}-{count:06d}"
        yield Item(key, key, document.load, document.stamp)


def from_jsonl(
    path: Path, stem: str, *, text: str = "{text}", key: str | None = None, group: str | None = None,
    meta: Sequence[str] = (),
) -> Iterator[Item]:  # fmt: skip
    """Each line is a JSON object: field txt from the template `text`, json from the fields `meta`.

    key, group: templates; without them the running number `STEM-000000` is the key and the key the group.
    """
    file, keys = line_file(path), Keys()
    for count, line in enumerate(document_lines(path)):
        document = TextDocument(file, line.number, line.offset, len(line.data), text, tuple(meta))
        where = f"{path}, line {line.number}"
        record = parse_line(where, decoded(line.data, where)) if key or group else Record()
        name = record.fill(key) if key else f"{stem}-{count:06d}"
        if key:
            keys.add(name, str(path), line.number)
        yield Item(name, record.fill(group) if group else name, document.load, document.stamp)
