"""Walks a tar header by header and says where every byte of every sample lies.

Python's `tarfile` (and with it `webdataset`) takes a damaged header in the middle of an archive for its end, and reads
nothing behind the first end mark (as GNU tar does), so the rest is lost without a word. This walker raises instead:
behind the end mark only zeros may follow. Two tars in one file are refused rather than read, since every other reader
of the shard would see the first one only. Shards may be gzip-compressed if the compressor was flushed
(Z_FULL_FLUSH) before each sample: inflation can start at such a point, which keeps samples of a compressed shard
readable by range.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from bigssl.config import limits
from bigssl.data.errors import DataError, damaged
from bigssl.data.sample import Readable
from bigssl.data.shards import leftout, tarheader, unpack
from bigssl.data.shards.blocks import LONG, PartSums
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.shards.unpack import RATIO_FROM, Refused

BLOCK = 512
_KEY_AND_FIELD = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_FLUSH = b"\x00\x00\xff\xff"  # the empty stored block that ends every flush of a deflate stream
_GZIP_HEADER = 10
_CHUNK = 1 << 20
_AFTER = 2 * tarfile.RECORDSIZE  # at most that much follows the last sample: padding, end mark, and zeros to a record
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset passes over


@dataclass(frozen=True)
class Entry:
    """One regular file of a tar: `header` and `offset` are bytes of the (uncompressed) tar, `length` that of the
    file, `parts` the checksums of the parts of a long .npy."""

    name: str
    header: int
    offset: int
    length: int
    crc32: int
    parts: str = ""


@dataclass
class FileGroup:
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
    return unpack.by_name(url) == "gzip"


def is_shard(url: str) -> bool:
    """True for names of shards whose samples can be read by range: bare and gzip-compressed tars."""
    return unpack.by_name(url) in (unpack.TAR, "gzip")


def opened_tar(file: Readable, url: str) -> Readable:
    """The tar in the shard `url`, which is packed as its name says. Raises DataError where it is not: a reader by range
    goes by the name."""
    peeked, named = unpack.Peeked(file), "gzip" if is_compressed(url) else unpack.TAR
    found = peeked.packing or (unpack.TAR if tarheader.begins(peeked.first) else named)  # or damage, to be named below
    if found != named:
        cause = f"the file is {found or 'a bare tar'}, its name says {named or 'bare tar'}"
        raise damaged(url, key=None, offset=0, cause=cause, advice=_repack(found))
    return unpack.Unpacked(peeked, named) if named else peeked


def _repack(packing: str) -> str:
    if packing in (unpack.TAR, "gzip"):
        return f"rename it to {unpack.SUFFIX[packing]}"
    return f"unpack it, or rename it to {unpack.SUFFIX[packing]} and read it with data.sources.NAME.sequential=true"


def walk(tar: Readable, url: str) -> Iterator[Entry]:
    """Every regular file of a bare tar, read once, front to back. Raises DataError at the first damaged byte of
    structure and at what `bigssl.config.limits` refuses; payloads are checksummed, not judged."""
    stream = TarStream(tar, url)
    override: dict[str, str] = {}
    members = 0
    while any(block := stream.take(BLOCK, "a header")):
        position = stream.position - BLOCK
        header = tarheader.parse_header(block, url, position)
        if header.type in tarheader.EXTENDED:
            override |= tarheader.extension(header, stream.take, url, position)
            continue
        members += 1
        if refused := limits.over("shard_members", members):
            raise damaged(url, key=None, offset=position, cause=f"number of files refused: {refused}")
        name, length = tarheader.member(header, override, url, position)
        sums = PartSums() if length >= LONG and name.lower().endswith("npy") else None
        offset, crc = stream.position, stream.skip(length, sums)
        if not header.isdir():
            yield Entry(name, position, offset, length, crc, sums.text() if sums else "")
        override = {}
    if any(stream.take(BLOCK, "the end mark")):
        raise damaged(
            url, key=None, offset=stream.position - 2 * BLOCK, cause="a zeroed header in the middle of the tar"
        )
    stream.drain()


class TarStream:
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

    def skip(self, length: int, sums: PartSums | None = None) -> int:
        """Passes a file of `length` bytes and its padding; returns the CRC-32 of the file. sums: gets its bytes."""
        crc, left = 0, length
        while left:
            part = self.take(min(left, _CHUNK), "a file")
            crc, left = zlib.crc32(part, crc), left - len(part)
            if sums is not None:
                sums.add(part)
        self.take(-length % BLOCK, "the padding of a file")
        return crc

    def drain(self) -> None:
        """Reads what follows the end mark, which must be zeros, so that gzip checks its own trailing checksum."""
        while part := self._read(_CHUNK):
            if zeros := part.lstrip(b"\0"):
                raise self._beyond(self.position + len(part) - len(zeros))
            self.position += len(part)

    def _beyond(self, place: int) -> DataError:
        cause = "data follows the end mark of the tar, where every reader stops: another tar appended, or zeroed blocks"
        advice = "unpack it into a FOLDER with `tar --ignore-zeros` and run `bigssl shards pack FOLDER NEW`"
        return damaged(self._url, key=None, offset=place, cause=cause, advice=advice)

    def _read(self, size: int) -> bytes:
        try:
            return self._source.read(size)
        except Refused as error:
            raise damaged(self._url, key=None, offset=self.position, cause=str(error)) from error
        except (EOFError, zlib.error) as error:
            cause = f"the compressed stream is damaged or truncated ({error})"
            raise damaged(self._url, key=None, offset=self.position, cause=cause) from error


def group_entries(entries: Iterator[Entry], url: str, left_out: LeftOut | None = None) -> Iterator[FileGroup]:
    """Samples of a shard in order. A key or a field that comes back later is an error: a reader would see two
    halves. left_out: is told what is no member of a sample: hidden files (also `._NAME`, which macOS puts beside
    NAME), names without an extension, and `__NAME__`, which webdataset passes over."""
    current: FileGroup | None = None
    seen: set[str] = set()
    for entry in entries:
        if reason := not_a_member(entry.name):
            if left_out is not None:
                left_out.add(reason, entry.name)
            continue
        key, field = split_name(entry.name) or ("", "")
        if current is None or key != current.key:
            if current is not None:
                yield current
            if key in seen:
                raise _not_adjacent(url, key, entry.header)
            seen.add(key)
            current = FileGroup(key, entry.header, entry.offset + entry.length, {})
        if field in current.fields:
            raise damaged(url, key=key, offset=entry.header, cause=f"the field {field!r} occurs twice")
        current.fields[field] = entry
        current.stop = entry.offset + entry.length
        if refused := limits.over("sample_bytes", current.stop - current.start):
            raise damaged(url, key=key, offset=current.start, cause=f"sample refused: {refused}")
    if current is not None:
        yield current


def not_a_member(name: str) -> str:
    """Why the file `name` belongs to no sample; empty where it does."""
    if name.rpartition("/")[2].startswith("."):
        return leftout.HIDDEN
    if _META.match(name):
        return leftout.META
    return "" if split_name(name) else leftout.NAMELESS


def _not_adjacent(url: str, key: str, offset: int) -> DataError:
    advice = "unpack it into a FOLDER and run `bigssl shards pack FOLDER NEW`, which puts them together"
    cause = "the key occurs twice, its files are not adjacent"
    return damaged(url, key=key, offset=offset, cause=cause, advice=advice)


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
