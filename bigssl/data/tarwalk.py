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
from pathlib import Path
from typing import IO, Protocol, cast

from bigssl.data.errors import damaged

BLOCK = 512
_KEY_AND_FIELD = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_FLUSH = b"\x00\x00\xff\xff"  # the empty stored block that ends every flush of a deflate stream
_GZIP_HEADER = 10
_CHUNK = 1 << 20
_EXTENDED_LIMIT = 1 << 20


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
    structure; payloads are checksummed, not judged."""
    stream = Stream(_inflated(file) if is_compressed(url) else file, url)
    override: dict[str, str] = {}
    while any(block := stream.take(BLOCK, "a header")):
        position = stream.position - BLOCK
        header = _header(block, url, position)
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
            override |= _extended(stream, header, url)
            continue
        length = int(override.get("size", header.size))
        offset, crc = stream.position, stream.skip(length)
        if header.isreg():
            yield Entry(override.get("path", header.name), position, offset, length, crc)
        override = {}
    if any(stream.take(BLOCK, "the end mark")):
        raise damaged(
            url, key=None, offset=stream.position - 2 * BLOCK, cause="a zeroed header in the middle of the tar"
        )
    stream.drain()


def _inflated(file: Readable) -> Readable:
    return cast(Readable, gzip.GzipFile(fileobj=cast(IO[bytes], file)))


class Stream:
    """Reads a tar stream forward, knows its position, and turns a missing byte into a DataError that says where."""

    def __init__(self, source: Readable, url: str) -> None:
        self._source, self._url, self.position = source, url, 0

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
        if length < 0:
            raise damaged(self._url, key=None, offset=self.position, cause=f"a file of {length} bytes")
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
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            cause = f"the compressed stream is damaged or truncated ({error})"
            raise damaged(self._url, key=None, offset=self.position, cause=cause) from error


def _header(block: bytes, url: str, position: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise damaged(url, key=None, offset=position, cause=f"bad tar header ({error})") from error


def _extended(stream: Stream, header: tarfile.TarInfo, url: str) -> dict[str, str]:
    """What a GNU long name or a pax header says about the next file (a global pax header: nothing)."""
    position = stream.position
    if not 0 <= header.size <= _EXTENDED_LIMIT:
        cause = f"an extended header of {header.size} bytes, {_EXTENDED_LIMIT} are allowed"
        raise damaged(url, key=None, offset=position, cause=cause)
    body = stream.take(-(-header.size // BLOCK) * BLOCK, "an extended header")[: header.size]
    if header.type == tarfile.XGLTYPE:
        return {}
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": body.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    try:
        return dict(_pax_records(body))
    except ValueError as error:
        raise damaged(url, key=None, offset=position, cause=f"bad pax header ({error})") from error


def _pax_records(body: bytes) -> Iterator[tuple[str, str]]:
    while body:  # each is "LENGTH KEY=VALUE\n", LENGTH counting all of it
        length = int(body.split(b" ", 1)[0])
        if not 0 < length <= len(body):
            raise ValueError(f"a record of {length} bytes")
        name, value = body[:length].split(b" ", 1)[1].removesuffix(b"\n").split(b"=", 1)
        yield name.decode(), value.decode("utf-8", "surrogateescape")
        body = body[length:]


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
    data = source.read_bytes()
    with target.open("wb") as out:
        out.write(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff")
        previous = 0
        for boundary in [b for b in boundaries if b > 0]:
            out.write(deflate.compress(data[previous:boundary]) + deflate.flush(zlib.Z_FULL_FLUSH))
            previous = boundary
        out.write(deflate.compress(data[previous:]) + deflate.flush(zlib.Z_FINISH))
        out.write(zlib.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little"))


def inflate_range(data: bytes, limit: int = 1 << 32) -> bytes:
    """The tar (at most `limit` bytes) from the flush point at which `data` begins. Raises zlib.error."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, limit)
