"""Documents for `bigssl shards pack`: one a line, as plain text or as JSON objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigssl import limits
from bigssl.data.errors import DataError
from bigssl.data.sources import Item, to_json, version


class LineFile(NamedTuple):
    """A file that is read by lines, and which version of it (see `sources.version`)."""

    path: str
    version: list[object]

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`. Raises OSError."""
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length)


class Line(NamedTuple):
    """One line: its number from 1, the byte it begins at, and its bytes without the end."""

    number: int
    offset: int
    data: bytes


def line_file(path: Path) -> LineFile:
    """`path` as it is now."""
    return LineFile(str(path), version(path))


def lines(path: Path) -> Iterator[Line]:
    """The lines of `path` that are not blank. Raises DataError where one is longer than a member may be."""
    offset, longest = 0, limits.current().member_bytes
    with path.open("rb") as file:
        number = 0
        while data := file.readline(longest + 1):
            number += 1
            if refused := limits.over("member_bytes", len(data)):
                raise DataError(f"{path}, line {number} refused: {refused}")
            if data.strip():
                yield Line(number, offset, data.rstrip(b"\r\n"))
            offset += len(data)


class Document(NamedTuple):
    """A line of a text file, or of a file of JSON objects when there is a template for its text."""

    file: LineFile
    number: int
    offset: int
    length: int
    template: str | None
    meta: tuple[str, ...]

    def load(self) -> dict[str, bytes]:
        """txt, and json where fields are wanted there."""
        data = self.file.read(self.offset, self.length)
        if self.template is None:
            return {"txt": data}
        record = parse(f"{self.file.path}, line {self.number}", data)
        fields = {"txt": record.fill(self.template).encode()}
        return fields | ({"json": to_json({name: record[name] for name in self.meta})} if self.meta else {})

    def stamp(self) -> object:
        """Which version of the file, and what is taken from it."""
        return [self.file.version, self.offset, self.template, self.meta]


class Record(dict[str, Any]):
    """A JSON object of a file; asking for a field that is not there is an error that says where."""

    where = ""

    def __missing__(self, name: str) -> Any:
        raise DataError(f"{self.where}: no field {name!r}; it has {', '.join(sorted(self)) or 'none'}")

    def fill(self, template: str) -> str:
        """`template` with fields in braces. Raises DataError for those that are neither text nor number."""
        return template.format_map(_Texts(self))


class _Texts(dict[str, str]):
    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record

    def __missing__(self, name: str) -> str:
        value = self._record[name]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise DataError(f"{self._record.where}: field {name!r} is {json.dumps(value)[:40]}; a text is needed")
        return str(value)


def parse(where: str, data: bytes) -> Record:
    """The JSON object in `data`. Raises DataError naming `where`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, an object is needed")
    record = Record(value)
    record.where = where
    return record


def from_lines(path: Path, stem: str) -> Iterator[Item]:
    """Each line that is not blank is a document: samples `STEM-000000`, numbered through, with the field txt."""
    file = line_file(path)
    for count, line in enumerate(lines(path)):
        document = Document(file, line.number, line.offset, len(line.data), None, ())
        key = f"{stem}-{count:06d}"
        yield Item(key, key, document.load, document.stamp)


def from_jsonl(
    path: Path, stem: str, *, text: str = "{text}", key: str | None = None, group: str | None = None,
    meta: Sequence[str] = (),
) -> Iterator[Item]:  # fmt: skip
    """Each line is a JSON object: field txt from the template `text`, json from the fields `meta`.

    key, group: templates; without them the running number `STEM-000000` is the key and the key the group.
    """
    file = line_file(path)
    for count, line in enumerate(lines(path)):
        document = Document(file, line.number, line.offset, len(line.data), text, tuple(meta))
        record = parse(f"{path}, line {line.number}", line.data) if key or group else Record()
        name = record.fill(key) if key else f"{stem}-{count:06d}"
        yield Item(name, record.fill(group) if group else name, document.load, document.stamp)
