"""Names of files, local and behind URLs, and the bytes of local files by range."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

from bigssl.data.remote.client import Remote, RemoteError
from bigssl.data.remote.files import RemoteFile
from bigssl.data.remote.pipes import PIPE


def is_local(url: str) -> bool:
    """True for plain paths and `file:` URLs."""
    return ("://" not in url or url.startswith("file://")) and not url.startswith(PIPE)


def local_path(url: str) -> Path:
    """The path of a local `url` (plain or `file:`)."""
    return Path(urlsplit(url).path if url.startswith("file://") else url)


def bare(url: str) -> str:
    """`url` without the query of an http(s) URL: what the name of the file is read from."""
    return url.split("?", 1)[0] if url.startswith(("http://", "https://")) else url


def append(url: str, text: str) -> str:
    """`url` with `text` at the end of its path, before a query."""
    return bare(url) + text + url[len(bare(url)) :]


def join(folder: str, name: str) -> str:
    """`name` inside `folder` (before its query); a `name` that is a URL or an absolute path stands for itself."""
    if "://" in name or os.path.isabs(name) or name.startswith(PIPE):
        return name
    if "://" not in folder:
        return str(Path(folder) / name)
    path = bare(folder)
    return f"{path.rstrip('/')}/{name}{folder[len(path) :]}"


def parent(url: str) -> str:
    """The folder of `url`, with its query."""
    if "://" not in url:
        return str(Path(url).parent)
    path = bare(url)
    return path.rpartition("/")[0] + url[len(path) :]


def name_of(url: str) -> str:
    """The last part of the path of `url`."""
    return os.path.basename(bare(url))


def open_stream(url: str, remote: Remote | None = None) -> IO[bytes]:
    """`url` for reading front to back. Raises OSError."""
    return local_path(url).open("rb") if is_local(url) else cast(IO[bytes], RemoteFile(url, remote))


def read_whole(url: str, remote: Remote | None = None) -> bytes:
    """All bytes of `url`. Raises OSError."""
    if is_local(url):
        return local_path(url).read_bytes()
    if remote is not None:
        return remote.read_whole(url)
    with Remote() as own:
        return own.read_whole(url)


def exists(url: str, remote: Remote | None = None) -> bool:
    """True when `url` names a file that can be seen from here. Raises OSError when that cannot be found out."""
    if is_local(url):
        return local_path(url).is_file()
    if remote is None:
        with Remote() as own:
            return exists(url, own)
    try:
        remote.size(url)
    except RemoteError as error:
        if error.missing:
            return False
        raise
    return True


class RangeReader:
    """Reads byte ranges of local files; keeps up to `limit` of them open. Safe across fork (pread has no shared
    cursor) and pickle."""

    def __init__(self, limit: int = 384) -> None:
        # A micro-batch meets a shard per lane, 256 by default, or two where one ends; a lower limit would open a file
        # for each sample.
        self._limit = limit
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(self, url: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only where the file ends. Raises OSError."""
        return _pread(self._open(url), offset, length)

    def version(self, url: str) -> tuple[int, int, int]:
        """Inode, bytes and time of last change of the file that `read` reads: another one, another version."""
        status = os.fstat(self._open(url))
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _open(self, url: str) -> int:
        descriptor = self._files.get(url)
        if descriptor is None:
            descriptor = self._files[url] = self._descriptor(url)
            self._shrink(self._limit)
        self._files.move_to_end(url)
        return descriptor

    def _descriptor(self, url: str) -> int:
        while True:
            try:
                return os.open(local_path(url), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                if error.errno != errno.EMFILE or not self._files:
                    raise
            self._limit = max(len(self._files) // 2, 1)  # other readers of this process have the rest
            self._shrink(self._limit - 1)

    def _shrink(self, limit: int) -> None:
        while len(self._files) > limit:
            os.close(self._files.popitem(last=False)[1])

    def close(self) -> None:
        """Close every file; a later read opens it again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_limit": self._limit, "_files": OrderedDict()}


def _pread(descriptor: int, offset: int, length: int) -> bytes:
    data = os.pread(descriptor, min(length, 1 << 30), offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    offset, length = offset + len(data), length - len(data)
    while length > 0:
        part = os.pread(descriptor, min(length, 1 << 30), offset)
        if not part:
            break
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)
