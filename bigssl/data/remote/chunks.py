"""Remote shards through the disk cache, in large aligned chunks: each is fetched once per machine, whoever asks."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol

from filelock import FileLock, Timeout

from bigssl.data.errors import DataError
from bigssl.data.remote.cache import DiskCache, entry_name
from bigssl.data.remote.client import Remote, RemoteError
from bigssl.data.remote.files import pieces

_POLL_SECONDS = 0.02
_TOO_OFTEN = 32  # chunks fetched again by one process


class RemoteShard(Protocol):
    """What a chunk has to know of its shard."""

    @property
    def url(self) -> str: ...

    @property
    def checksum(self) -> str: ...

    @property
    def bytes(self) -> int: ...


class Chunks:
    """Byte ranges of remote shards, read from the cache and fetched into it.

    `full` turns True when the disk did not take a chunk; from then on this process reads without the cache.
    """

    def __init__(self, remote: Remote, cache: DiskCache, size: int) -> None:
        self._remote, self._cache, self._size = remote, cache, size
        self._flying: dict[str, Future[bytes]] = {}
        self._whole_only: set[str] = set()
        # threads of its own: in the loop's, filling could wait for a name look-up that waits for a thread
        self._threads = ThreadPoolExecutor(remote.config.connections, "bigssl-cache")
        # a chunk on its way takes its size twice: in pieces, and joined
        self._slots = asyncio.Semaphore(max(1, (remote.config.ahead_mb << 20) // (2 * size)))
        self._seen: set[str] = set()
        self._again = 0
        self.full = False

    def read(self, shard: RemoteShard, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a shard. Raises OSError."""
        parts = []
        for number in self._numbers(start, stop):
            begin = number * self._size
            inside = slice(max(start - begin, 0), min(stop - begin, self._size))
            data = self._cache.read(self._entry(shard, number), inside.start, inside.stop - inside.start)
            parts.append(self._fetch(shard, number).result()[inside] if data is None else data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def ahead(self, shard: RemoteShard, start: int, stop: int) -> None:
        """Start fetching what is not there yet of [start, stop)."""
        for number in self._numbers(start, stop):
            if not self._cache.has(self._entry(shard, number)):
                self._fetch(shard, number)

    def forget(self, shard: RemoteShard, start: int, stop: int) -> None:
        """Drop what the cache has of [start, stop): it is wrong."""
        for number in self._numbers(start, stop):
            self._cache.drop(self._entry(shard, number))

    def close(self) -> None:
        """Wait for what is being written, close files. Close the remote first, or it is waited for as well."""
        self._threads.shutdown()
        self._flying.clear()
        self._cache.close()

    def _numbers(self, start: int, stop: int) -> range:
        return range(start // self._size, math.ceil(stop / self._size))

    def _entry(self, shard: RemoteShard, number: int) -> str:
        return entry_name(shard.url, shard.checksum, f"{self._size}-{number}")

    def _fetch(self, shard: RemoteShard, number: int) -> Future[bytes]:
        entry = self._entry(shard, number)
        future = self._flying.get(entry)
        if future is None:
            future = self._flying[entry] = self._remote.submit(self._load(shard, number, entry))
            future.add_done_callback(lambda _: self._flying.pop(entry, None))
        return future

    async def _load(self, shard: RemoteShard, number: int, entry: str) -> bytes:
        """The chunk: of another process that fetched it meanwhile, or from the server."""
        async with _held(self._cache.lock(entry, "chunk")):
            data = await self._in_thread(self._cache.read_whole, entry)
            if data is not None:
                return bytes(data)
            if shard.url not in self._whole_only:
                begin = number * self._size
                try:
                    async with self._slots:
                        stop = min(begin + self._size, shard.bytes)
                        data = await self._remote.get(shard.url, begin, stop, shard.bytes)
                        await self._in_thread(self._store, entry, data)
                    return data
                except RemoteError as error:
                    if error.ranges:
                        raise
                    self._whole_only.add(shard.url)
            async with _held(self._cache.lock(shard.url, "whole")):
                data = await self._in_thread(self._cache.read_whole, entry)
                return bytes(data) if data is not None else await self._in_thread(self._fill, shard, number)

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def _fill(self, shard: RemoteShard, wanted: int) -> bytes:
        """Fetches a shard whose server ignores ranges, once from front to back, and returns chunk `wanted`."""
        if shard.bytes > self._cache.limit:
            raise RemoteError(
                f"the server ignores byte ranges and the shard of {shard.bytes} bytes does not fit into the cache of "
                f"{self._cache.limit}; raise data.remote.cache_gb"
            )
        kept = b""
        for number, data in enumerate(self._cut(pieces(self._remote, shard.url, self._size))):
            kept = data if number == wanted else kept
            self._store(self._entry(shard, number), data)
        return kept

    def _cut(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        buffer = bytearray()
        for part in parts:
            buffer += part
            while len(buffer) >= self._size:
                yield bytes(buffer[: self._size])
                del buffer[: self._size]
        if buffer:
            yield bytes(buffer)

    def _store(self, entry: str, data: bytes) -> None:
        self._count(entry)
        try:
            self._cache.store(entry, data)
        except OSError as error:
            if not self.full:
                note = f"bigssl: cache {self._cache.folder}: cannot be written ({error.strerror or error}); "
                note += "this process reads on without it; free space, or lower data.remote.cache_gb"
                print(note, file=sys.stderr, flush=True)
            self.full = True


    def _count(self, entry: str) -> None:
        """A cache that is too small for what is read in turns would fetch everything many times, in silence."""
        if entry in self._seen:
            self._again += 1
            if self._again == _TOO_OFTEN:
                note = f"bigssl: cache {self._cache.folder}: {self._again} chunks were fetched again after they made "
                note += f"room; raise data.remote.cache_gb (it is {self._cache.limit / 1e9:g}), or lower "
                print(note + "data.shuffle_window, data.lanes or data.remote.chunk_mb", file=sys.stderr, flush=True)
        self._seen.add(entry)


@asynccontextmanager
async def _held(lock: FileLock) -> AsyncIterator[None]:
    """Waits without blocking the loop."""
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            await asyncio.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def open_cache(remote: Remote) -> Chunks | None:
    """The chunks of the configured cache, if there is one. Raises DataError for one that cannot hold anything."""
    config = remote.config
    if config.cache is None:
        return None
    limit, size = int(config.cache_gb * 1e9), config.chunk_mb << 20
    if limit < 4 * size:
        raise DataError(
            f"data.remote.cache_gb: value {config.cache_gb}, allowed is 4 chunks of {config.chunk_mb} MiB or more, "
            f"{4 * size / 1e9:.3f}"
        )
    return Chunks(remote, DiskCache(config.cache, limit), size)
