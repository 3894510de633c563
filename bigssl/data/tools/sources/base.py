"""What `bigssl shards pack` reads. Each source yields `Item`s in order; an item knows where its bytes are and does not
hold them. Folders, tables, texts, series and shards: `folder`, `tables`, `text`,
`series`, `shards`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bigssl.config import limits
from bigssl.data.errors import DataError
from bigssl.data.shards.tarwalk import not_a_member, split_name


class Stretch(NamedTuple):
    """Rows `start` to `start + rows` of a series that a sample holds; other samples may hold some of them too."""

    series: str
    start: int
    rows: int

    @property
    def stop(self) -> int:
        """The first row behind it."""
        return self.start + self.rows


@dataclass(frozen=True, slots=True)
class Item:
    """A sample to be packed: `load()` gives its fields; samples of equal `group` stay on one side of a split.

    stamp: says, as something JSON can hold, which version of the source `load` would read; equal stamps, equal bytes.
    Shards of items without one are never taken over from an interrupted run. label: what its json says as `label`,
    where that is known before it is loaded. stretch: where a split has to go by time, the rows that it holds. fields:
    names of those that it has at least, where they are known before. margin: rows before what a split by time holds
    out that are on neither side.
    """

    key: str
    group: str
    load: Callable[[], dict[str, bytes]]
    stamp: Callable[[], object] | None = None
    label: object | None = None
    stretch: Stretch | None = None
    fields: frozenset[str] | None = None
    margin: int = 0


def json_bytes(values: Mapping[str, object]) -> bytes:
    """Compact UTF-8 JSON with sorted keys: the same values, the same bytes. Strings must be text (no half of a
    surrogate pair)."""
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def version(path: str | Path) -> list[object]:
    """Name, size and time of change of a file. Raises OSError."""
    facts = os.stat(path)
    return [os.fspath(path), facts.st_size, facts.st_mtime_ns]


def read_file(path: str | Path) -> bytes:
    """The bytes of a file. Raises OSError, and DataError where it is larger than a member of a shard may be."""
    if refused := limits.over("member_bytes", os.stat(path).st_size):
        raise DataError(f"{path} refused: {refused}")
    return Path(path).read_bytes()


class Keys:
    """The keys of a source, each usable and there once."""

    def __init__(self) -> None:
        self._seen: dict[str, str | int] = {}

    def add(self, key: str, source: str = "", line: int = 0) -> None:
        """Raises DataError for a key that no shard can hold, or that came before; source, line: where it stands."""
        where = f"{source}, line {line}: " if line else ""
        if cause := unusable(key):
            raise DataError(f"{where}key {key!r} cannot name a sample: {cause}")
        if key in self._seen:
            first = f" (first in line {self._seen[key]})" if line else ""
            raise DataError(f"{where}key {key!r} occurs twice in the source{first}; keys must be unique")
        self._seen[key] = line


def unusable(key: str) -> str:
    """Why `key` cannot name a sample of a shard; nothing where it can."""
    if not is_utf8(key):
        return "it is not UTF-8; rename its files"
    parts = key.removeprefix("./").split("/")  # tars made of a folder have it before every name
    if split_name(f"{key}.x") != (key, "x") or {"", ".", ".."} & set(parts) or "\0" in key:
        return "it must be relative, its last part without a dot; rename it, or choose the key (--key, --pattern)"
    return "webdataset passes over names that begin with __NAME__/" if not_a_member(f"{key}.x") else ""


def is_utf8(text: str) -> bool:
    """False for what came from bytes that are no UTF-8, as names of files may."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_fields(key: str, fields: Iterable[str]) -> None:
    """Raises DataError for a field that webdataset's writer would leave out."""
    for field in fields:
        if not field or field.startswith("_") or "/" in field or not is_utf8(field):
            cause = "it must have a name that is UTF-8 and does not begin with _, which webdataset does not write"
            raise DataError(f"sample {key!r}: field {field!r} cannot be written: {cause}; rename it")
