"""The content of compressed shards, front to back, and what a file is by its first bytes and by its name.

gzip is read by range too (see `tarwalk.flush_points`); bzip2, xz and zstd only from front to back.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any, Protocol, cast

from bigssl import limits
from bigssl.data.errors import DataError

RATIO_FROM = 1 << 20  # bytes of tar; what unpacks to less does no harm, however well it was packed
TAR = ""
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_NAMES = {
    ".tar": TAR, ".tar.gz": "gzip", ".tgz": "gzip", ".tar.bz2": "bzip2", ".tbz2": "bzip2", ".tbz": "bzip2",
    ".tar.xz": "xz", ".txz": "xz", ".tar.zst": "zstd", ".tzst": "zstd",
}  # fmt: skip
SUFFIX = {TAR: ".tar", "gzip": ".tar.gz", "bzip2": ".tar.bz2", "xz": ".tar.xz", "zstd": ".tar.zst"}
_PEEK = max(map(len, _MAGIC))
_PIECE = 4096  # bytes of zstd, which may hold 128 MiB


class Readable(Protocol):
    """Anything with `read(size)`."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, none at the end."""


class Refused(zlib.error):
    """A compressed stream that unpacks to more than `bigssl.limits` allow."""


def by_name(url: str) -> str | None:
    """How a shard called so is packed ("" for a bare tar); None for what no shard is called."""
    name = url.lower()
    return next((packing for suffix, packing in _NAMES.items() if name.endswith(suffix)), None)


def by_content(first: bytes) -> str:
    """How a stream that begins so is packed; "" for everything unknown, a bare tar among it."""
    return next((packing for magic, packing in _MAGIC.items() if first.startswith(magic)), TAR)


class Peeked:
    """A stream whose first bytes were looked at: `packing` says what they are."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        first = b""
        while len(first) < _PEEK and (part := source.read(_PEEK - len(first))):
            first += part
        self._rest, self.packing = first, by_content(first)

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


class _Zstd:
    """zstandard's reader with its error as zlib's, also for a stream that ends early, of which it says nothing."""

    def __init__(self, packed: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            cause = "zstd needs the package zstandard, which is not installed"
            raise DataError(cause, cause=cause, advice="run `pip install 'bigssl[zstd]'`") from None
        self._error = zstandard.ZstdError
        self._packed, self._frame = packed, zstandard.ZstdDecompressor
        self._inflate: Any = None
        self._rest, self._ready = b"", b""

    def read(self, size: int = -1) -> bytes:
        while not self._ready and self._more():
            pass
        size = len(self._ready) if size < 0 else size
        data, self._ready = self._ready[:size], self._ready[size:]
        return data

    def _more(self) -> bool:
        """One more piece of the input; False at its end."""
        piece = self._rest or self._packed.read(_PIECE)
        self._rest = b""
        if not piece:
            if self._inflate is not None:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            return False
        self._inflate = self._inflate or self._frame().decompressobj()
        try:
            self._ready = self._inflate.decompress(piece)
        except self._error as error:
            raise zlib.error(str(error)) from error
        if self._inflate.eof:
            self._rest, self._inflate = self._inflate.unused_data, None
        return True


_OPENERS: dict[str, Callable[[IO[bytes]], Readable]] = {
    "gzip": lambda packed: gzip.GzipFile(fileobj=packed),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": _Zstd,
}


def unpacked(source: Readable) -> Readable:
    """The tar in `source`, by its first bytes."""
    peeked = Peeked(source)
    return Unpacked(peeked, peeked.packing) if peeked.packing else peeked
