"""An endless order of samples as a pure function of (index, seed, position), and the reading of one.

    position:  p = e·N + q; epoch e takes sample q of its order (see `lanes`)

so N positions are exactly the dataset, whatever N and the number of lanes are; a batch is spread over all of it; and a
rank, which gets a contiguous piece of the batch by lanes, reads shards of its own in sequence. World size, workers and
history do not occur. The state of a run is one integer.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bigssl.config import limits
from bigssl.data.errors import DataError, damaged, display
from bigssl.data.order.lanes import Epoch, lanes_of
from bigssl.data.order.order import Order, position_beside
from bigssl.data.remote.client import RemoteError
from bigssl.data.sample import Sample
from bigssl.data.shards import storage, tarwalk
from bigssl.data.shards.index import DatasetIndex, Row, ShardInfo
from bigssl.data.shards.prefetch import Extent, ExtentReader

__all__ = ["Sample", "SampleReader", "Stream", "read_in_order"]

ORDER = "bigssl-order-2"  # of another version, a position is another sample: a run cannot go on
_EPOCHS = 4  # in memory; a batch may span two
_TOGETHER = 256  # samples that are fetched at once when a dataset is read in order


class Stream(Order):
    """An endless, seeded order over `index`; epochs follow one another without a seam.

    lanes: logical readers; raised to what mixes batches (see `lanes_of`). window: samples of a lane that are shuffled
    among themselves, for as many lanes as were asked for: more lanes share them out.
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
        self.lanes = lanes_of(len(index), lanes)
        self.window = max(1, window * lanes // self.lanes)
        self.on_error, self.max_errors = on_error, max_errors
        self._reader = SampleReader(index)
        self._size = len(index)
        self._epochs: dict[int, Epoch] = {}

    def __len__(self) -> int:
        """Samples of one epoch."""
        return self._size

    @property
    def indexes(self) -> dict[str, DatasetIndex]:
        return {"": self.index}

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{ORDER} {self.index.fingerprint}".encode()).hexdigest()

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, number of the sample in the index) at `position`, any integer from 0. Costs no read."""
        epoch, place = divmod(int(position), self._size)
        return epoch, (self._epochs.get(epoch) or self._epoch(epoch)).number(place)

    def shard_at(self, position: int) -> str:
        return display(self.index.shards[self.index.shard_of(self.locate(position)[1])].url)

    def locate_many(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epochs, places = np.divmod(positions, self._size)
        return epochs, self._each(epochs, places, Epoch.numbers)

    def lanes_at(self, positions: np.ndarray) -> np.ndarray:
        """int64 [n]: the lanes of int64 [n] positions; lanes in order are the dataset in the order of the epoch."""
        epochs, places = np.divmod(positions, self._size)
        return self._each(epochs, places % self.lanes, lambda epoch, slots: epoch.slots[slots])

    def _each(
        self, epochs: np.ndarray, values: np.ndarray, answer: Callable[[Epoch, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """`answer` of the values of each epoch."""
        if len(epochs) and epochs[0] == epochs[-1] and (epochs == epochs[0]).all():
            return answer(self._epoch(int(epochs[0])), values)
        found = np.empty_like(values)
        for epoch in np.unique(epochs).tolist():
            rows = np.flatnonzero(epochs == epoch)
            found[rows] = answer(self._epoch(epoch), values[rows])
        return found

    def _epoch(self, epoch: int) -> Epoch:
        if epoch not in self._epochs:
            while len(self._epochs) >= _EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            counts = np.diff(self.index.offsets)
            self._epochs[epoch] = Epoch(counts, self.lanes, self.window, self.seed, epoch)
        return self._epochs[epoch]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_epochs": {}}

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

    def another(self, position: int, rng: np.random.Generator, without: Collection[int] = ()) -> int:
        return position_beside(position, len(self), rng, without)

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
        lanes = self.lanes_at(positions).astype(np.min_scalar_type(self.lanes))  # short numbers sort in linear time
        return positions[np.argsort(lanes, kind="stable")]


def _require(true: bool, name: str, value: object, allowed: str) -> None:
    if not true:
        raise DataError(f"stream: {name} is {value!r}, allowed is {allowed}")


class SampleReader:
    """Reads samples of an index by number: one byte range each, every field checked against its CRC-32."""

    def __init__(self, index: DatasetIndex) -> None:
        self.index = index
        self._extents = ExtentReader(index.remote)
        self.remote = is_remote(index)
        if self.remote:
            self._extents.check()

    def read(self, number: int, *, position: int | None = None, epoch: int = 0, source: str = "") -> Sample:
        """Sample `number` of the index. Raises DataError naming shard, key, offset and cause."""
        shard, row = self.index.row(number)
        self._refuse_large(shard, row)
        fields = self.index.shaped(number, self.fields(shard, row))
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

    def ahead(self, numbers: Sequence[int]) -> Iterator[int]:
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
        for offset, length, *_ in row.members.values():
            largest, stop = max(largest, length), max(stop, offset + length)
        refused = limits.over("member_bytes", largest) or limits.over("sample_bytes", stop - row.origin)
        if refused:
            raise self._damaged(shard, row, row.origin, f"sample refused: {refused}")

    def _damaged(self, shard: ShardInfo, row: Row, offset: int | None, cause: str) -> DataError:
        return damaged(shard.url, key=row.key, offset=offset, cause=cause, dataset=self.index.url)


def is_remote(index: DatasetIndex) -> bool:
    """Whether any of its shards lies elsewhere."""
    return not all(storage.is_local(shard.url) for shard in index.shards)


def read_in_order(index: DatasetIndex, limit: int | None = None) -> Iterator[Sample]:
    """Every sample once, in the order of the index: what evaluation and tokenizer training read."""
    return read_numbers(index, range(len(index) if limit is None else min(limit, len(index))))


def read_numbers(index: DatasetIndex, numbers: Sequence[int]) -> Iterator[Sample]:
    """These samples of an index, in this order; remote ones are fetched together. Raises DataError."""
    reader = SampleReader(index)
    try:
        yield from map(reader.read, reader.ahead(numbers))
    finally:
        reader.close()
