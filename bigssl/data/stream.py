"""The order of samples as a pure function of (index, seed, position), and the reading of one.

    epoch e:   shards permuted by (seed, e), their samples in a row, turned by a number keyed by (seed, e),
               cut into L contiguous ranges, the lanes; a lane is cut into blocks of `window` samples, each permuted
               by (seed, e, lane, block)
    position:  p = e·N + q;  q is sample q div L of lane q mod L

so N positions are exactly the dataset, whatever N and L are, each step takes the same number from each lane, and a
rank, which gets a contiguous piece of the lanes, reads its own shards in sequence. World size, workers and history do
not occur. The state of a run is one integer.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np

from bigssl import limits
from bigssl.data import rng, storage, tarwalk
from bigssl.data.errors import DataError, damaged, display
from bigssl.data.index import DatasetIndex, Row, ShardInfo
from bigssl.data.order import Order, Sample
from bigssl.data.prefetch import Extent, ExtentReader
from bigssl.data.remote import RemoteError

__all__ = ["Sample", "SampleReader", "Stream", "in_order"]

_TOGETHER = 256  # samples that are fetched at once when a dataset is read in order


class Stream(Order):
    """An endless, seeded order over `index`; epochs follow one another without a seam.

    lanes: logical readers, lowered to the number of samples. window: samples that are shuffled among themselves.
    on_error: "raise", or "skip" to put the next good sample of the same epoch in the place of a bad one.
    max_errors: how many bad samples in a row "skip" replaces (how many of a run: see `skipped`).
    """

    def __init__(
        self,
        index: DatasetIndex,
        *,
        seed: int,
        lanes: int = 256,
        window: int = 1024,
        source: str = "",
        on_error: str = "raise",
        max_errors: int = 100,
    ) -> None:
        _require(lanes >= 1, "lanes", lanes, "1 or more")
        _require(window >= 1, "window", window, "1 or more")
        _require(on_error in ("raise", "skip"), "on_error", on_error, "'raise' or 'skip'")
        self.index, self.seed, self.source = index, seed, source
        self.window, self.lanes = window, min(lanes, len(index))
        self.on_error, self.max_errors = on_error, max_errors
        self._reader = SampleReader(index)
        self._counts = tuple(shard.samples for shard in index.shards)
        self._size, self._offsets = len(index), index.offsets.tolist()
        self._epoch: tuple[int, list[int], list[int], int] = (-1, [], [], 0)

    def __len__(self) -> int:
        """Samples of one epoch."""
        return self._size

    @property
    def indexes(self) -> dict[str, DatasetIndex]:
        return {"": self.index}

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, number of the sample in the index) at `position`, any integer from 0. Costs no read."""
        size = self._size
        epoch, place = divmod(int(position), size)
        step, lane = divmod(place, self.lanes)
        short, longer = divmod(size, self.lanes)
        begin, length = lane * short + min(lane, longer), short + (lane < longer)
        block, inside = divmod(step, self.window)
        extent = min(self.window, length - block * self.window)
        order = block_order(extent, self.seed, epoch, lane, block)
        if epoch != self._epoch[0]:  # the cached function would hash the counts of all shards for every sample
            self._epoch = epoch, *_epoch_order(self._counts, self.seed, epoch)
        _, shards, starts, turn = self._epoch
        place = (begin + block * self.window + order.item(inside) + turn) % size
        rank = bisect_right(starts, place) - 1
        return epoch, self._offsets[shards[rank]] + place - starts[rank]

    def shard_at(self, position: int) -> str:
        return display(self.index.shards[self.index.shard_of(self.locate(position)[1])].url)

    def locate_many(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`locate` of int64 [n] positions at once: one permutation per block that occurs, not per position."""
        size = len(self)
        epochs, places = np.divmod(positions, size)
        steps, lanes = np.divmod(places, self.lanes)
        short, longer = divmod(size, self.lanes)
        blocks, inside = np.divmod(steps, self.window)
        for rows in _groups(epochs, lanes, blocks):
            first = rows[0]
            extent = min(self.window, short + (lanes[first] < longer) - blocks[first] * self.window)
            block = (self.seed, int(epochs[first]), int(lanes[first]), int(blocks[first]))
            inside[rows] = block_order(int(extent), *block)[inside[rows]]
        places = lanes * short + np.minimum(lanes, longer) + blocks * self.window + inside
        for epoch in np.unique(epochs).tolist():
            rows = np.flatnonzero(epochs == epoch)
            order, begins, turn = _epoch_order(self._counts, self.seed, epoch)
            shards, starts = np.array(order), np.array(begins)
            turned = (places[rows] + turn) % size
            ranks = np.searchsorted(starts, turned, side="right") - 1
            places[rows] = self.index.offsets[shards[ranks]] + turned - starts[ranks]
        return epochs, places

    def key(self, position: int) -> str:
        return self.index.row(self.locate(position)[1])[1].key

    def read(self, position: int) -> Sample:
        """The sample at `position`, verified. Raises DataError naming shard, key, offset and cause."""
        epoch, number = self.locate(position)
        return self._reader.read(number, position=int(position), epoch=epoch, source=self.source)

    def announce(self, now: Iterable[int], later: Iterable[int]) -> None:
        try:
            self._reader.announce(*([self.locate(position)[1] for position in part] for part in (now, later)))
        except DataError:  # of an index; where bad samples are skipped, it is counted once for each sample
            if self.on_error == "raise":
                raise

    @property
    def remote(self) -> bool:
        return self._reader.remote

    def close(self) -> None:
        self._reader.close()

    def candidates(self, position: int) -> Iterator[int]:
        """`position`, then, where bad samples are skipped, what stands in for it: the next ones of the same epoch."""
        yield position
        if self.on_error == "raise":
            return
        start, place = position - position % len(self), position % len(self)
        for step in range(1, min(self.max_errors, len(self) - 1) + 1):
            yield start + (place + step) % len(self)

    def global_batch(self, step: int, size: int) -> np.ndarray:
        """int64 [size]: positions of global step `step`, sorted by (lane, position). The same for every world size."""
        positions = np.arange(step * size, (step + 1) * size, dtype=np.int64)
        return positions[np.lexsort((positions, positions % len(self) % self.lanes))]


def _groups(*columns: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each set of rows that are equal in all columns."""
    order = np.lexsort(columns)
    changes = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    return [rows for rows in np.split(order, np.flatnonzero(changes) + 1) if len(rows)]


def _require(true: bool, name: str, value: object, allowed: str) -> None:
    if not true:
        raise DataError(f"stream: {name} is {value!r}, allowed is {allowed}")


@lru_cache(maxsize=4096)
def block_order(size: int, seed: int, epoch: int, lane: int, block: int) -> np.ndarray:
    """int32 [size]: the order in which the samples of a block are read."""
    return rng.permutation(size, "block", seed, epoch, lane, block).astype(np.int32)


@lru_cache(maxsize=16)
def _epoch_order(counts: tuple[int, ...], seed: int, epoch: int) -> tuple[list[int], list[int], int]:
    """Permuted shard numbers, the place at which each begins, and by how much the row of samples is turned.

    Turning it moves the cuts between lanes: without, a dataset of few shards would be cut at the same places each
    epoch.
    """
    shards = rng.permutation(len(counts), "shards", seed, epoch)
    starts = np.concatenate([[0], np.cumsum(np.asarray(counts)[shards])[:-1]])
    return shards.tolist(), starts.tolist(), rng.offset(sum(counts), "turn", seed, epoch)


class SampleReader:
    """Reads samples of an index by number: one byte range each, every field checked against its CRC-32."""

    def __init__(self, index: DatasetIndex) -> None:
        self.index = index
        self._extents = ExtentReader(index.remote)
        self.remote = not all(storage.is_local(shard.url) for shard in index.shards)
        if self.remote:
            self._extents.check()

    def read(self, number: int, *, position: int | None = None, epoch: int = 0, source: str = "") -> Sample:
        """Sample `number` of the index. Raises DataError naming shard, key, offset and cause."""
        shard, row = self.index.row(number)
        self._refuse_large(shard, row)
        fields = self.fields(shard, row)
        return Sample(row.key, fields, number if position is None else position, epoch, shard.name, source)

    def announce(self, now: Iterable[int], later: Iterable[int]) -> None:
        """Fetch the remote ones of these samples together: those to be read now, then those of the next micro-batch.

        What cannot be fetched is an error of the sample when it is read.
        """
        numbers = [list(now), list(later)]
        self.index.prepare(numbers[0] + numbers[1])
        rows = [[self.index.row(number) for number in part] for part in numbers]
        extents = [
            [Extent(shard, row.start, row.start + row.length) for shard, row in part if not storage.is_local(shard.url)]
            for part in rows
        ]
        self._extents.announce(*extents)

    def ahead(self, numbers: range) -> Iterator[int]:
        """`numbers` one by one; remote samples are fetched in groups, each before its first is given."""
        for begin in range(0, len(numbers), _TOGETHER):
            group = numbers[begin : begin + _TOGETHER]
            if self.remote:
                self.announce(group, range(0))
            yield from group

    def fields(self, shard: ShardInfo, row: Row) -> dict[str, bytes]:
        """The verified bytes of every field of a row."""
        try:
            return self._verified(shard, row, self._extents.read)
        except DataError as error:
            if storage.is_local(shard.url) or isinstance(error.__cause__, RemoteError):
                raise
        try:
            return self._verified(shard, row, self._extents.read_again)  # it may be the transport or the cache
        except DataError as error:
            raise self._damaged(shard, row, error.offset, error.cause + self._change(shard)) from None

    def close(self) -> None:
        """End threads, close connections and files; a later read starts anew."""
        self.index.close()
        self._extents.close()

    def _verified(self, shard: ShardInfo, row: Row, read: Callable[[ShardInfo, int, int], bytes]) -> dict[str, bytes]:
        tar = self._extent(shard, row, read)
        return {name: self._field(tar, shard, row, name) for name in row.members}

    def _change(self, shard: ShardInfo) -> str:
        try:
            self.index.remote.check_size(shard.url, shard.bytes)
        except OSError as error:
            return f" ({error})"
        return ""

    def _extent(self, shard: ShardInfo, row: Row, read: Callable[[ShardInfo, int, int], bytes]) -> bytes:
        try:
            data = read(shard, row.start, row.length)
            return tarwalk.inflate_range(data) if tarwalk.is_compressed(shard.name) else data
        except (OSError, zlib.error) as error:
            cause = f"cannot be read ({getattr(error, 'strerror', None) or error})"
            raise self._damaged(shard, row, row.start, cause) from error

    def _field(self, tar: bytes, shard: ShardInfo, row: Row, name: str) -> bytes:
        member = row.members[name]
        begin = member.offset - row.origin
        data = tar[begin : begin + member.length]
        if len(data) < member.length:
            cause = f"field {name!r} is truncated: {len(data)} of {member.length} bytes"
            raise self._damaged(shard, row, member.offset, cause)
        if zlib.crc32(data) != member.crc32:
            cause = f"field {name!r} differs from its checksum: damaged, or changed after it was indexed"
            raise self._damaged(shard, row, member.offset, cause)
        return data

    def _refuse_large(self, shard: ShardInfo, row: Row) -> None:
        largest = stop = 0
        for offset, length, _ in row.members.values():
            largest, stop = max(largest, length), max(stop, offset + length)
        refused = limits.over("member_bytes", largest) or limits.over("sample_bytes", stop - row.origin)
        if refused:
            raise self._damaged(shard, row, row.origin, f"sample refused: {refused}")

    def _damaged(self, shard: ShardInfo, row: Row, offset: int | None, cause: str) -> DataError:
        return damaged(shard.url, key=row.key, offset=offset, cause=cause, dataset=self.index.url)


def in_order(index: DatasetIndex, limit: int | None = None) -> Iterator[Sample]:
    """Every sample once, in the order of the index: what evaluation and tokenizer training read."""
    reader, size = SampleReader(index), len(index) if limit is None else min(limit, len(index))
    try:
        for number in reader.ahead(range(size)):
            yield reader.read(number)
    finally:
        reader.close()
