"""Walks a tar header by header and says where every byte of every sample lies.

Python's `tarfile` (and with it `webdataset`) takes a damaged header in the middle of an archive for its end, so the
rest is lost without a word. This walker raises instead. Shards may be gzip-compressed if the compressor was flushed
(Z_FULL_FLUSH) before each sample: inflation can start at such a point, which keeps samples of a compressed shard
readable by range.
"""

from __future__ import annotations

import gzip
import hashlib
import mmap
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Protocol, cast

from bigssl import limits
from bigssl.data import tarheader
from bigssl.data.errors import damaged

BLOCK = 512
_KEY_AND_FIELD = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_FLUSH = b"\x00\x00\xff\xff"  # the empty stored block that ends every flush of a deflate stream
_GZIP_HEADER = 10
_CHUNK = 1 << 20
_AFTER = 2 * tarfile.RECORDSIZE  # at most that much follows the last sample: padding, end mark, and zeros to a record
RATIO_FROM = 1 << 20  # bytes of tar; what unpacks to less does no harm, however well it was packed


class Readable(Protocol):
    """Anything with `read(size)`."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, none at the end."""


@dataclass(frozen=True)
class Entry:
    """One regular file of a tar: `header` and `offset` are bytes of the (uncompressed) tar, `length` that of the
    file."""

    name: str
    header: int
    offset: int
    length: int
    crc32: int


@dataclass
class Group:
    """The adjacent files of one sample: key, byte of the first header, byte after the last file, field -> Entry."""

    key: str
    start: int
    stop: int
    fields: dict[str, Entry]


class Hashing:
    """A readable stream that remembers the SHA-256 and the number of the bytes that went through it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._hash, self.bytes = stream, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        """As the stream's own."""
        data = self._stream.read(size)
        self._hash.update(data)
        self.bytes += len(data)
        return data

    def finish(self) -> str:
        """Reads what is left and returns the checksum of everything as hex."""
        while self.read(_CHUNK):
            pass
        return self._hash.hexdigest()


def split_name(name: str) -> tuple[str, str] | None:
    """(key, field) of a member's name by WebDataset's rule: the field begins after the first dot of the last part."""
    found = _KEY_AND_FIELD.match(name)
    return (found.group(1), found.group(2).lower()) if found else None


def is_compressed(url: str) -> bool:
    """True for shards that are gzip streams, by name (`.tar.gz`, `.tgz`)."""
    return url.endswith((".gz", ".tgz"))


def is_shard(url: str) -> bool:
    """True for names that a shard may have."""
    return url.endswith((".tar", ".tar.gz", ".tgz"))


def walk(file: Readable, url: str) -> Iterator[Entry]:
    """Every regular file of the shard's tar, read once, front to back. Raises DataError at the first damaged byte of
    structure and at what `bigssl.limits` refuses; payloads are checksummed, not judged."""
    stream = Stream(file, url)
    override: dict[str, str] = {}
    members = 0
    while any(block := stream.take(BLOCK, "a header")):
        position = stream.position - BLOCK
        header = tarheader.parse(block, url, position)
        if header.type in tarheader.EXTENDED:
            override |= tarheader.extension(header, stream.take, url, position)
            continue
        members += 1
        if refused := limits.over("shard_members", members):
            raise damaged(url, key=None, offset=position, cause=f"number of files refused: {refused}")
        name, length = tarheader.member(header, override, url, position)
        offset, crc = stream.position, stream.skip(length)
        if not header.isdir():
            yield Entry(name, position, offset, length, crc)
        override = {}
    if any(stream.take(BLOCK, "the end mark")):
        raise damaged(
            url, key=None, offset=stream.position - 2 * BLOCK, cause="a zeroed header in the middle of the tar"
        )
    stream.drain()


class _Counting:
    """A readable stream that remembers how many bytes went through it."""

    def __init__(self, source: Readable) -> None:
        self._source, self.bytes = source, 0

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.bytes += len(data)
        return data


class Refused(zlib.error):
    """A compressed stream that unpacks to more than `bigssl.limits` allow."""


class Inflated:
    """The content of a gzip stream. Raises Refused, and what `gzip` raises for damage."""

    def __init__(self, packed: Readable) -> None:
        self._packed, self._unpacked = _Counting(packed), 0
        self._file = gzip.GzipFile(fileobj=cast(IO[bytes], self._packed))

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, none at the end."""
        data = self._file.read(size)
        self._unpacked += len(data)
        if self._unpacked > RATIO_FROM:
            refused = limits.over("ratio", self._unpacked // max(1, self._packed.bytes))
            if refused:
                raise Refused(f"compression refused: {refused}")
        return data


class Stream:
    """Reads a tar stream forward, knows its position, and turns a missing byte into a DataError that says where."""

    def __init__(self, source: Readable, url: str) -> None:
        self._source = Inflated(source) if is_compressed(url) else source
        self._url, self.position = url, 0

    def take(self, size: int, what: str) -> bytes:
        """Exactly `size` bytes."""
        parts, missing = [], size
        while missing and (part := self._read(missing)):
            parts.append(part)
            missing -= len(part)
        if missing:
            cause = f"truncated: {what} needs {size} bytes, {size - missing} are there"
            raise damaged(self._url, key=None, offset=self.position, cause=cause)
        self.position += size
        return b"".join(parts)

    def skip(self, length: int) -> int:
        """Passes a file of `length` bytes and its padding; returns the CRC-32 of the file."""
        crc, left = 0, length
        while left:
            part = self.take(min(left, _CHUNK), "a file")
            crc, left = zlib.crc32(part, crc), left - len(part)
        self.take(-length % BLOCK, "the padding of a file")
        return crc

    def drain(self) -> None:
        """Reads what follows the end mark, so that gzip checks its own trailing checksum."""
        while self._read(_CHUNK):
            pass

    def _read(self, size: int) -> bytes:
        try:
            return self._source.read(size)
        except Refused as error:
            raise damaged(self._url, key=None, offset=self.position, cause=str(error)) from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            cause = f"the compressed stream is damaged or truncated ({error})"
            raise damaged(self._url, key=None, offset=self.position, cause=cause) from error


def group(entries: Iterator[Entry], url: str) -> Iterator[Group]:
    """Samples of a shard in order. A key or a field that comes back later is an error: a reader would see two
    halves."""
    current: Group | None = None
    seen: set[str] = set()
    for entry in entries:
        named = split_name(entry.name)
        if named is None or entry.name.startswith("__"):
            continue  # not a member of a sample by WebDataset's rule
        key, field = named
        if current is None or key != current.key:
            if current is not None:
                yield current
            if key in seen:
                raise damaged(
                    url, key=key, offset=entry.header, cause="the key occurs twice, its files are not adjacent"
                )
            seen.add(key)
            current = Group(key, entry.header, entry.offset + entry.length, {})
        if field in current.fields:
            raise damaged(url, key=key, offset=entry.header, cause=f"the field {field!r} occurs twice")
        current.fields[field] = entry
        current.stop = entry.offset + entry.length
        if refused := limits.over("sample_bytes", current.stop - current.start):
            raise damaged(url, key=key, offset=current.start, cause=f"sample refused: {refused}")
    if current is not None:
        yield current


def flush_points(path: Path) -> dict[int, int]:
    """For a gzip shard: byte of the tar -> byte of the file, wherever the compressor was flushed."""
    points, produced, begin = {0: _GZIP_HEADER}, 0, _GZIP_HEADER
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while (found := data.find(_FLUSH, begin)) >= 0:
            produced += len(inflate.decompress(data[begin : found + len(_FLUSH)]))
            begin = found + len(_FLUSH)
            points.setdefault(produced, begin)
    return points


def compress(source: Path, target: Path, boundaries: list[int]) -> None:
    """Writes `source` as a gzip stream with a full flush at each of `boundaries` (bytes of `source`, increasing).

    The header carries no name and no time, so the same input gives the same bytes.
    """
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
    edges = [0, *(boundary for boundary in boundaries if boundary > 0), source.stat().st_size]
    crc = 0
    with source.open("rb") as tar, target.open("wb") as out:
        out.write(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff")
        for begin, end in pairwise(edges):
            crc = _deflate(deflate, tar, end - begin, out, crc)
            out.write(deflate.flush(zlib.Z_FINISH if end == edges[-1] else zlib.Z_FULL_FLUSH))
        out.write(crc.to_bytes(4, "little") + (edges[-1] & 0xFFFFFFFF).to_bytes(4, "little"))


def _deflate(deflate: Any, tar: IO[bytes], length: int, out: IO[bytes], crc: int) -> int:
    while length:
        part = tar.read(min(length, _CHUNK))
        out.write(deflate.compress(part))
        crc, length = zlib.crc32(part, crc), length - len(part)
    return crc


def inflate_range(data: bytes) -> bytes:
    """The tar from the flush point at which `data` begins, a sample long. Raises zlib.error, Refused too."""
    most, ratio = limits.current().sample_bytes + _AFTER, limits.current().ratio
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    tar = inflate.decompress(data, min(most, max(RATIO_FROM, ratio * len(data))) + 1)
    refused = limits.over("sample_bytes", len(tar) - _AFTER)
    if not refused and len(tar) > RATIO_FROM:
        refused = limits.over("ratio", -(-len(tar) // len(data)))
    if refused:
        raise Refused(f"compression refused: {refused}")
    return tar
