"""Bytes of shards by range: local files with pread, everything else through fsspec."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec


def is_local(url: str) -> bool:
    """True for plain paths and `file:` URLs."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The path of a local `url` (plain or `file:`)."""
    return Path(urlsplit(url).path if url.startswith("file://") else url)


def join(folder: str, name: str) -> str:
    """`name` inside `folder`; a `name` that is a URL or an absolute path stands for itself."""
    if "://" in name or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if "://" in folder else str(Path(folder) / name)


def open_stream(url: str) -> IO[bytes]:
    """`url` for reading front to back. Raises OSError."""
    if is_local(url):
        return local_path(url).open("rb")
    stream: IO[bytes] = fsspec.open(url, "rb").open()
    return stream


def read_whole(url: str) -> bytes:
    """All bytes of `url`. Raises OSError."""
    with open_stream(url) as stream:
        return stream.read()


def exists(url: str) -> bool:
    """True when `url` names a file that can be seen from here."""
    if is_local(url):
        return local_path(url).is_file()
    fs, path = fsspec.core.url_to_fs(url)
    return bool(fs.isfile(path))


class RangeReader:
    """Reads byte ranges; keeps up to `limit` local files open. Safe across fork (pread has no shared cursor) and
    pickle."""

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(self, url: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only where the file ends. Raises OSError."""
        if not is_local(url):
            fs, path = fsspec.core.url_to_fs(url)
            data: bytes = fs.cat_file(path, start=offset, end=offset + length)
            return data
        return _pread(self._open(url), offset, length)

    def _open(self, url: str) -> int:
        descriptor = self._files.get(url)
        if descriptor is None:
            descriptor = os.open(local_path(url), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            self._files[url] = descriptor
        self._files.move_to_end(url)
        while len(self._files) > self._limit:
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def close(self) -> None:
        """Close every file; a later read opens it again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_limit": self._limit, "_files": OrderedDict()}


def _pread(descriptor: int, offset: int, length: int) -> bytes:
    parts = []
    while length > 0:
        part = os.pread(descriptor, min(length, 1 << 30), offset)
        if not part:
            break
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
