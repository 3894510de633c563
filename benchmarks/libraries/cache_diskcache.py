"""`DiskCache` by the package diskcache, for `try.sh`: entries in files, the order of use in SQLite.

It has no checksums, which are kept in front of the content as ours are. pip install --no-deps diskcache
"""

import os
import zlib
from pathlib import Path

import diskcache
from filelock import FileLock

from bigssl.data.errors import DataError
from bigssl.data.remote.cache import _HEADER, _MAGIC, _is_sound, entry_name  # noqa: F401


class DiskCache:
    """As ours."""

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        self.folder, self.limit, self._sound = Path(folder).expanduser(), limit, set[str]()
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            self._cache = diskcache.Cache(
                str(self.folder), size_limit=limit, eviction_policy="least-recently-used", disk_min_file_size=0
            )
        except OSError as error:
            why = error.strerror or error
            raise DataError(f"data.remote.cache: folder {self.folder} cannot be written to ({why})") from None

    def read(self, entry: str, start: int, length: int) -> bytes | None:
        file = self._cache.get(entry, read=True)
        if file is None:
            return None
        with file:
            if entry not in self._sound and not _is_sound(file.read()):
                self._cache.delete(entry)
                return None
            self._sound.add(entry)
            return os.pread(file.fileno(), length, _HEADER.size + start)

    def read_whole(self, entry: str) -> bytes | None:
        data = self._cache.get(entry)
        if data is not None and not _is_sound(data):
            self._cache.delete(entry)
            return None
        return None if data is None else data[_HEADER.size :]

    def has(self, entry: str) -> bool:
        return self._cache.touch(entry)

    def store(self, entry: str, data: bytes) -> None:
        size = _HEADER.size + len(data)
        if size > self.limit:
            raise OSError(f"an entry of {size} bytes, the cache holds {self.limit}")
        self._cache.set(entry, _HEADER.pack(_MAGIC, zlib.crc32(data), len(data)) + data)

    def drop(self, entry: str) -> None:
        self._cache.delete(entry)

    def lock(self, entry: str, purpose: str) -> FileLock:
        stripe = zlib.crc32(entry.encode()) % 256
        return FileLock(self.folder / "locks" / f"{purpose}-{stripe:02x}")

    def close(self) -> None:
        self._cache.close()
