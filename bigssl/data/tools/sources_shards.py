"""Samples of shards that exist, to be packed into others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.order.stream import SampleReader
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.sources import Item


class Stored(NamedTuple):
    """A sample of an index."""

    reader: SampleReader
    number: int

    def load(self) -> dict[str, bytes]:
        """Its fields as they are, verified. Raises DataError."""
        return self.reader.read(self.number).fields

    def stamp(self) -> object:
        """Which sample of which version of a shard."""
        shard, row = self.reader.index.row(self.number)
        return [shard.checksum, row.origin]


def from_index(index: DatasetIndex, numbers: Iterable[int], group: str | None = None) -> Iterator[Item]:
    """Samples `numbers` of `index`. group: a field of their json whose equal values are one group (default: the key).

    Raises DataError where a sample has no such field.
    """
    reader = SampleReader(index)
    for number in numbers:
        sample = Stored(reader, number)
        key = index.row(number)[1].key
        yield Item(key, key if group is None else _group(reader, number, group), sample.load, sample.stamp)


def _group(reader: SampleReader, number: int, name: str) -> str:
    sample = reader.read(number)
    values = decode.meta(decode.field(sample, ["json"]))
    if name not in values:
        there = ", ".join(sorted(values)) or "nothing"
        raise DataError(f"shard {sample.shard}, sample {sample.key!r}: no {name!r} in its json, which has {there}")
    return str(values[name])
