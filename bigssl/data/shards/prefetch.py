"""The byte ranges of samples: local ones by pread, remote ones fetched together and ahead of use.

A worker announces the ranges of the micro-batch it is about to read and of the one after it. They are fetched at the
same time, neighbours in one request, in the order of use, never more than `ahead_mb` at once: a range that was read
makes room for the next. With a cache, the chunks of those ranges are fetched into it instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future
from typing import NamedTuple

from bigssl.data.remote.chunks import Chunks, open_cache
from bigssl.data.remote.client import Remote, RemoteError
from bigssl.data.shards.sidecar import ShardInfo
from bigssl.data.shards.storage import RangeReader, is_local


class Extent(NamedTuple):
    """Bytes [start, stop) of a shard."""

    shard: ShardInfo
    start: int
    stop: int


class _Piece:
    """One request, and how many of the announced extents in it are still to be read."""

    def __init__(self, shard: ShardInfo, start: int, stop: int) -> None:
        self.shard, self.start, self.stop, self.readers = shard, start, stop, 0
        self.future: Future[bytes] | None = None


class ExtentReader:
    """Reads extents of shards. Announced ones were fetched when they are read, or are under way."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._budget = remote.config.ahead_mb << 20
        self._files = RangeReader()
        self._chunks: Chunks | None = None
        self._pieces: dict[Extent, _Piece] = {}
        self._queue: deque[_Piece] = deque()
        self._flying = 0

    def check(self) -> None:
        """Raises DataError for a cache that cannot be used."""
        self._cache()

    def read(self, shard: ShardInfo, start: int, length: int) -> bytes:
        """`length` bytes of a shard from `start`; fewer only where a local file ends. Raises OSError."""
        if is_local(shard.url):
            return self._files.read(shard.url, start, length)
        try:
            return self._read_remote(Extent(shard, start, start + length))
        except RemoteError as error:
            if error.ranges:
                raise
            advice = "set data.remote.cache=FOLDER to fetch each shard once, or serve it where Range requests work"
            raise RemoteError(f"{error}; {advice}", ranges=False) from None

    def read_again(self, shard: ShardInfo, start: int, length: int) -> bytes:
        """The same from the server, past everything that was kept: the kept bytes are wrong. Raises OSError."""
        chunks = self._cache()
        if chunks is not None:
            chunks.forget(shard, start, start + length)
            return chunks.read(shard, start, start + length)
        return self._remote.read(shard.url, start, start + length, shard.bytes)

    def announce(self, now: Sequence[Extent], later: Sequence[Extent]) -> None:
        """Fetch remote extents: those of the micro-batch to be read now and those of the next."""
        chunks = self._cache()
        if chunks is not None:
            for extent in (*now, *later):
                chunks.ahead(*extent)
            return
        wanted = dict.fromkeys((*now, *later))
        self._drop(extent for extent in list(self._pieces) if extent not in wanted)
        for part in (now, later):
            self._queue.extend(self._merged([extent for extent in dict.fromkeys(part) if extent not in self._pieces]))
        self._fill()

    def close(self) -> None:
        """Close files and forget what was fetched; a later read starts anew."""
        self._drop(list(self._pieces))
        self._files.close()
        if self._chunks is not None:
            self._chunks.close()
        self._chunks = None

    def _cache(self) -> Chunks | None:
        if self._chunks is None:
            self._chunks = open_cache(self._remote)
        return None if self._chunks is None or self._chunks.full else self._chunks

    def _read_remote(self, extent: Extent) -> bytes:
        try:
            return self._awaited(extent)
        except CancelledError:  # another reader of the same index closed the connections
            self.close()
            return self._awaited(extent)

    def _awaited(self, extent: Extent) -> bytes:
        chunks = self._cache()
        if chunks is not None:
            return chunks.read(*extent)
        piece = self._pieces.get(extent)
        if piece is None or piece.future is None:
            return self._remote.read(extent.shard.url, extent.start, extent.stop, extent.shard.bytes)
        try:
            data = piece.future.result()
            return data[extent.start - piece.start : extent.stop - piece.start]
        finally:
            self._drop([extent])
            self._fill()

    def _merged(self, extents: list[Extent]) -> list[_Piece]:
        """Requests that cover `extents`, neighbours joined, in the order in which they are first read."""
        made: dict[Extent, _Piece] = {}
        piece: _Piece | None = None
        for extent in sorted(extents, key=lambda e: (e.shard.url, e.start)):
            if piece is None or not self._near(piece, extent):
                piece = _Piece(*extent)
            piece.stop = max(piece.stop, extent.stop)
            piece.readers += 1
            made[extent] = piece
        self._pieces |= made
        return list(dict.fromkeys(made[extent] for extent in extents))

    def _near(self, piece: _Piece, extent: Extent) -> bool:
        small = extent.stop - piece.start <= self._budget // 4  # one request must not take the place of all others
        return piece.shard.url == extent.shard.url and extent.start <= piece.stop + self._remote.config.gap and small

    def _fill(self) -> None:
        while self._queue:
            piece = self._queue[0]
            size = piece.stop - piece.start
            if piece.readers and self._flying and self._flying + size > self._budget:
                return
            self._queue.popleft()
            if piece.readers:
                self._flying += size
                piece.future = self._remote.submit(
                    self._remote.get(piece.shard.url, piece.start, piece.stop, piece.shard.bytes)
                )

    def _drop(self, extents: Iterable[Extent]) -> None:
        for extent in extents:
            piece = self._pieces.pop(extent)
            piece.readers -= 1
            if piece.readers == 0 and piece.future is not None:
                piece.future.cancel()
                self._flying -= piece.stop - piece.start
