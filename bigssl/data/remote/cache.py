"""Pieces of remote files on the local disk: bounded, least recently used first out, shared by all processes.

Every entry is one file, complete under its name or not there at all: it is written beside, then renamed. Its header
holds length and CRC-32 of the content. The time of last use is the file's mtime, so the order of eviction is that of
all processes. A counter of bytes, raised under a lock before anything is written, keeps the sum under the limit; only
when it reaches the limit is the folder looked through. Locks are the kernel's: those of a killed process are free.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from bigssl.data.errors import DataError
from bigssl.files import writing

_HEADER = struct.Struct("<8sIQ")
_MAGIC = b"bigssl-1"
_STRIPES = 256
_OPEN = 4  # an evicted file that is open still takes its space
_ORPHAN_SECONDS = 600.0  # a part that nobody wrote to for so long belongs to a process that is gone
_IN_USE = 1 << 63


def entry_name(url: str, checksum: str, part: str) -> str:
    """The name of `part` of the version `checksum` of the file at `url` (all of it: basenames repeat)."""
    digest = hashlib.sha256(f"{url}\0{checksum}\0{part}".encode()).hexdigest()
    return f"{digest[:2]}/{digest[2:48]}"


class DiskCache:
    """A folder of entries of at most `limit` bytes together. Safe across threads of a loop, forks and processes."""

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        self.folder, self.limit = Path(folder).expanduser(), limit
        self._files: OrderedDict[str, int] = OrderedDict()
        self._sound: dict[str, int] = {}
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            with self._counting():
                pass
        except OSError as error:
            why = error.strerror or error
            raise DataError(f"data.remote.cache: folder {self.folder} cannot be written to ({why})") from None

    def read(self, entry: str, start: int, length: int) -> bytes | None:
        """Bytes of an entry, which now is the most recently used; None when it is not there or not sound."""
        descriptor = self._open(entry)
        if descriptor is None:
            return None
        _touch(descriptor)
        return os.pread(descriptor, length, _HEADER.size + start)

    def read_whole(self, entry: str) -> bytes | None:
        """All of an entry, verified."""
        try:
            data = (self.folder / entry).read_bytes()
        except OSError:
            return None
        if not _is_sound(data):
            (self.folder / entry).unlink(missing_ok=True)
            return None
        self.has(entry)
        return data[_HEADER.size :]

    def has(self, entry: str) -> bool:
        """True when there is such an entry; marks it as used, so that it stays until it is read."""
        try:
            _touch(self.folder / entry)
        except OSError:
            return False
        return True

    def store(self, entry: str, data: bytes) -> None:
        """Keep `data` as `entry`, evicting what was not used for longest. Raises DiskFull when the disk is."""
        size = _HEADER.size + len(data)
        if size > self.limit:
            raise OSError(f"an entry of {size} bytes, the cache holds {self.limit}")
        path = self.folder / entry
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f"{uuid.uuid4().hex}.part")
        with writing(path, size, part):
            try:
                self._reserve(part, size)
                with part.open("r+b") as file:
                    file.write(_HEADER.pack(_MAGIC, zlib.crc32(data), len(data)))
                    file.write(data)
                _touch(part)
                with self._counting():  # or who counts could meet it under neither name
                    os.replace(part, path)
            except OSError:
                part.unlink(missing_ok=True)
                raise

    def drop(self, entry: str) -> None:
        """Forget an entry whose content is wrong."""
        self._forget(entry)
        (self.folder / entry).unlink(missing_ok=True)

    def lock(self, entry: str, purpose: str) -> FileLock:
        """A lock that (at least) everyone who fills `entry` takes. Locks of different purposes never wait for each
        other."""
        stripe = int(hashlib.sha256(entry.encode()).hexdigest(), 16) % _STRIPES
        return FileLock(self.folder / "locks" / f"{purpose}-{stripe:02x}")

    def close(self) -> None:
        """Close every file; a later read opens it again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def _open(self, entry: str) -> int | None:
        descriptor = self._files.get(entry)
        if descriptor is None:
            try:
                descriptor = os.open(self.folder / entry, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except FileNotFoundError:
                return None
            self._files[entry] = descriptor
            if not self._verified(entry, descriptor):
                self.drop(entry)
                return None
        self._files.move_to_end(entry)
        while len(self._files) > _OPEN:
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def _verified(self, entry: str, descriptor: int) -> bool:
        """Reads the whole entry once per process; samples have checksums of their own."""
        status = os.fstat(descriptor)
        if self._sound.get(entry) != status.st_ino:
            if not _is_sound(os.pread(descriptor, status.st_size, 0)):
                return False
            self._sound[entry] = status.st_ino
        return True

    def _forget(self, entry: str) -> None:
        self._sound.pop(entry, None)
        descriptor = self._files.pop(entry, None)
        if descriptor is not None:
            os.close(descriptor)

    def _counting(self) -> FileLock:
        """Held by who counts bytes, or changes what there is to count (that they become fewer does no harm)."""
        return FileLock(self.folder / "locks" / "size")

    def _reserve(self, part: Path, size: int) -> None:
        """Makes `part` a file of `size` bytes (without content), so that who counts files counts it in full."""
        counter = self.folder / "locks" / "bytes"
        with self._counting():
            try:
                total = int(counter.read_text()) + size
            except (OSError, ValueError):  # none yet, or its writer was killed
                total = self.limit + 1
            if total > self.limit:
                total = self._evict(size) + size
            counter.write_text(str(total))
            with part.open("wb") as file:
                file.truncate(size)

    def _evict(self, size: int) -> int:
        """Makes room for `size` bytes and a little more; returns the bytes that remain."""
        found = sorted(self._scan())
        total = sum(length for _, length, _ in found)
        if total + size <= self.limit:
            return total
        for used, length, path in found:
            if used == _IN_USE:
                break
            path.unlink(missing_ok=True)
            total -= length
            if total + max(size, self.limit // 16) <= self.limit:
                break
        return total

    def _scan(self) -> Iterator[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of every file. Parts of dead writers come first, those of live ones last."""
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            used = status.st_mtime_ns
            if path.suffix == ".part":
                used = 0 if time.time() - status.st_mtime > _ORPHAN_SECONDS else _IN_USE
            yield used, status.st_size, path


def _touch(file: Path | int) -> None:
    """Marks a file as used now. The kernel's own clock for this is too coarse to tell uses apart."""
    now = time.time_ns()
    os.utime(file, ns=(now, now))


def _is_sound(data: bytes) -> bool:
    if len(data) < _HEADER.size:
        return False
    magic, crc, length = _HEADER.unpack_from(data)
    content = memoryview(data)[_HEADER.size :]
    return magic == _MAGIC and length == len(content) and crc == zlib.crc32(content)
