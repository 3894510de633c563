"""One line of JSON per sample: where its bytes lie. The lines are kept raw and parsed when a sample is asked for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bigssl.data import storage
from bigssl.data.errors import DataError, display

SIDECAR = ".idx"
FORMAT = "bigssl-index-1"


@dataclass(frozen=True)
class Member:
    """One field of a sample: byte offset in the (uncompressed) tar, length in bytes, CRC-32 of the content."""

    offset: int
    length: int
    crc32: int


@dataclass(frozen=True)
class ShardInfo:
    """One shard. `bytes` is the size of the file, `checksum` its SHA-256, `index_checksum` that of its sidecar."""

    name: str
    url: str
    index_url: str
    samples: int
    bytes: int
    checksum: str
    index_checksum: str
    fields: tuple[str, ...]


class Row(NamedTuple):
    """One sample. Read `length` bytes of the file at `start`; the first of them is byte `origin` of the tar."""

    key: str
    start: int
    length: int
    origin: int
    members: dict[str, Member]


class Sidecar:
    """The raw lines of one sidecar."""

    def __init__(self, info: ShardInfo, dataset: str) -> None:
        self._info, self._dataset = info, dataset
        self._data, header = read_sidecar(info.index_url, dataset)
        if hashlib.sha256(self._data).hexdigest() != info.index_checksum:
            raise self._stale("its checksum differs from the manifest's")
        self._lines = np.flatnonzero(np.frombuffer(self._data, dtype=np.uint8) == ord("\n"))
        if len(self._lines) != info.samples + 1 or header["sha256"] != info.checksum:
            raise self._stale("it belongs to another version of the shard")

    def _stale(self, cause: str) -> DataError:
        where, again = display(self._info.index_url), display(self._dataset)
        return DataError(
            f"index {where}: {cause}; run `bigssl shards verify {again}`, then `bigssl shards index {again}`"
        )

    def row(self, number: int) -> Row:
        """Row `number` of the shard."""
        key, start, length, origin, fields = json.loads(self._data[self._lines[number] + 1 : self._lines[number + 1]])
        return Row(key, start, length, origin, {name: Member(*values) for name, values in fields.items()})


def read_index(url: str, dataset: str) -> bytes:
    """The bytes of an index file of `dataset`. Raises DataError naming the command that builds it."""
    try:
        return storage.read_whole(url)
    except (OSError, ValueError) as error:
        cause = f"no index at {display(url)} ({type(error).__name__})"
        raise DataError(f"dataset {display(dataset)}: {cause}; run `bigssl shards index {display(dataset)}`") from error


def parse(data: bytes, url: str, dataset: str) -> dict[str, Any]:
    """The JSON object of a manifest, or of a sidecar's first line. Raises DataError."""
    try:
        parsed = json.loads(data)
        if parsed["format"] != FORMAT:
            raise ValueError(f"format is {parsed['format']!r}, this version reads {FORMAT!r}")
    except (ValueError, KeyError, TypeError) as error:
        again = f"run `bigssl shards index {display(dataset)}`"
        raise DataError(f"index {display(url)}: not an index ({error}); {again}") from error
    return dict(parsed)


def read_sidecar(url: str, dataset: str) -> tuple[bytes, dict[str, Any]]:
    """(all bytes, header) of a sidecar. Raises DataError."""
    data = read_index(url, dataset)
    return data, parse(data[: data.find(b"\n") + 1], url, dataset)


def to_line(row: Row) -> str:
    """The line of `row` in a sidecar."""
    members = {field: [m.offset, m.length, m.crc32] for field, m in row.members.items()}
    return json.dumps([row.key, row.start, row.length, row.origin, members], separators=(",", ":"), ensure_ascii=False)
