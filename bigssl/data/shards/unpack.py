"""The content of compressed shards, front to back, and what a file is by its first bytes and by its name.

gzip is read by range too (see `tarwalk.flush_points`); bzip2, xz and zstd only from front to back.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any, cast

from bigssl.config import limits
from bigssl.data.errors import DataError
from bigssl.data.sample import Readable

RATIO_FROM = 1 << 20  # bytes of tar; what unpacks to less does no harm, however well it was packed
TAR = ""
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_NAMES = {
    ".tar": TAR, ".tar.gz": "gzip", ".tgz": "gzip", ".tar.bz2": "bzip2", ".tbz2": "bzip2", ".tbz": "bzip2",
    ".tar.xz": "xz", ".txz": "xz", ".tar.zst": "zstd", ".tzst": "zstd",
}  # fmt: skip
SUFFIX = {TAR: ".tar", "gzip": ".tar.gz", "bzip2": ".tar.bz2", "xz": ".tar.xz", "zstd": ".tar.zst"}
_PEEK = 512  # bytes: the first header of a tar, and more than any magic number
_PIECE = 4096  # bytes of a packed stream, which may hold 128 MiB


class Refused(zlib.error):
    """A compressed stream that unpacks to more than `bigssl.config.limits` allow."""


def by_name(url: str) -> str | None:
    """How a shard called so is packed ("" for a bare tar); None for what no shard is called."""
    name = url.lower()
    return next((packing for suffix, packing in _NAMES.items() if name.endswith(suffix)), None)


def by_content(first: bytes) -> str:
    """How a stream that begins so is packed; "" for everything unknown, a bare tar among it."""
    return next((packing for magic, packing in _MAGIC.items() if first.startswith(magic)), TAR)


class Peeked:
    """A stream whose `first` 512 bytes (fewer where it ends) were looked at: `packing` says what they are."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        first = b""
        while len(first) < _PEEK and (part := source.read(_PEEK - len(first))):
            first += part
        self.first = self._rest = first
        self.packing = by_content(first)

    def read(self, size: int = -1) -> bytes:
        """As the stream's own."""
        if size < 0:
            data, self._rest = self._rest, b""
            return data + self._source.read(size)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data or self._source.read(size)


class _Counting:
    """A readable stream that remembers how many bytes went through it, and whether it failed."""

    def __init__(self, source: Readable) -> None:
        self._source, self.bytes, self.failed = source, 0, False

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._source.read(size)
        except OSError:
            self.failed = True
            raise
        self.bytes += len(data)
        return data


class Unpacked:
    """The content of a compressed stream. Raises zlib.error for damage, EOFError where it ends early, Refused, and
    DataError (with a cause only) where the program lacks the library."""

    def __init__(self, packed: Readable, packing: str) -> None:
        self._packed, self._unpacked = _Counting(packed), 0
        self._file: Readable = _OPENERS[packing](cast(IO[bytes], self._packed))

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, none at the end."""
        try:
            data = self._file.read(size)
        except (OSError, lzma.LZMAError) as error:  # bz2 has no type of its own for damage
            if self._packed.failed:
                raise
            raise zlib.error(str(error)) from error
        self._unpacked += len(data)
        if self._unpacked > RATIO_FROM:
            refused = limits.over("ratio", self._unpacked // max(1, self._packed.bytes))
            if refused:
                raise Refused(f"compression refused: {refused}")
        return data


class _Streams:
    """Packed streams in a row, with zeros between and behind them. Python's own readers of bzip2 and xz take whatever
    follows the first stream for nothing, and zstandard's says nothing of a stream that ends early."""

    def __init__(self, packed: IO[bytes], begin: Callable[[], Any]) -> None:
        """begin: what unpacks one stream, with `decompress`, `eof` and `unused_data`."""
        self._packed, self._begin = packed, begin
        self._stream: Any = None
        self._rest, self._ready = b"", io.BytesIO()

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, none at the end."""
        while not (data := self._ready.read(size)):
            if not self._more():
                break
        return data

    def _more(self) -> bool:
        """One more piece of the input; False at its end."""
        piece = self._rest or self._packed.read(_PIECE)
        self._rest = b""
        if not piece:
            if self._stream is not None:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            return False
        if self._stream is None:
            piece = piece.lstrip(b"\0")
            if not piece:
                return True
            self._stream = self._begin()
        self._ready = io.BytesIO(self._stream.decompress(piece))
        if self._stream.eof:
            self._rest, self._stream = self._stream.unused_data, None
        return True


def _zstd(packed: IO[bytes]) -> Readable:
    try:
        import zstandard
    except ImportError:
        cause = "zstd needs the package zstandard, which is not installed"
        raise DataError(cause, cause=cause, advice="run `pip install 'bigssl[zstd]'`") from None

    class Stream:
        """One of zstandard, with its error as zlib's."""

        def __init__(self) -> None:
            self._inflate = zstandard.ZstdDecompressor().decompressobj()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inflate, name)

        def decompress(self, data: bytes) -> bytes:
            try:
                return self._inflate.decompress(data)
            except zstandard.ZstdError as error:
                raise zlib.error(str(error)) from error

    return _Streams(packed, Stream)


_OPENERS: dict[str, Callable[[IO[bytes]], Readable]] = {
    "gzip": lambda packed: gzip.GzipFile(fileobj=packed),
    "bzip2": lambda packed: _Streams(packed, bz2.BZ2Decompressor),
    "xz": lambda packed: _Streams(packed, lzma.LZMADecompressor),
    "zstd": _zstd,
}


def unpacked(source: Readable) -> Readable:
    """The tar in `source`, by its first bytes."""
    peeked = Peeked(source)
    return Unpacked(peeked, peeked.packing) if peeked.packing else peeked
