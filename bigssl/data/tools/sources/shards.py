"""Samples of shards that exist, to be packed into others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.order.stream import SampleReader
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.sources.base import Item, Stretch

_NUMBERED = re.compile(r"(.+)-\d{6}")


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
    """Samples `numbers` of `index`. group: a field of their json whose equal values are one group (default: the key,
    which `key` means too where there is no json).

    Raises DataError where a sample has no such field.
    """
    reader = SampleReader(index)
    for number in numbers:
        sample = Stored(reader, number)
        key = index.row(number)[1].key
        of_key = group is None or (group == "key" and "json" not in index.fields)
        yield Item(key, key if of_key else _group(reader, number, group or ""), sample.load, sample.stamp)


def stretches_of(index: DatasetIndex) -> Iterator[Item] | None:
    """All samples of `index` with the rows that their json says they hold; None where the first of each shard says
    nothing of that, so that they are no windows. Raises DataError for those that say nothing while others do, and for
    windows that were packed before they said it.
    """
    reader, firsts, count = SampleReader(index), list[bool](), 0
    for shard in index.shards:
        firsts.append(_stretch(reader, count) is not None)
        count += shard.samples
    if not any(firsts):
        _refuse_unsaid(index)
        return None
    return (replace(item, stretch=_said_stretch(reader, number))
            for number, item in enumerate(from_index(index, range(len(index)))))  # fmt: skip


def _stretch(reader: SampleReader, number: int) -> Stretch | None:
    if not {"npy", "json"} <= set(reader.index.fields):
        return None
    fields = reader.read(number).fields
    facts = decode.meta(fields["json"]) if "json" in fields else {}
    series, start, rows = (facts.get(name) for name in Stretch._fields)
    if isinstance(series, str) and isinstance(start, int) and isinstance(rows, int):
        return Stretch(series, start, rows)
    return None


def _said_stretch(reader: SampleReader, number: int) -> Stretch:
    stretch = _stretch(reader, number)
    if stretch is None:
        shard, row = reader.index.row(number)
        what = "its json has no `series`, `start` and `rows`, as those of other samples have"
        raise DataError(f"shard {shard.name}, sample {row.key!r}: {what}; split what was packed from series by itself")
    return stretch


def _refuse_unsaid(index: DatasetIndex) -> None:
    if set(index.fields) != {"npy"}:
        return
    keys = (index.row(number)[1].key for number in range(len(index)))
    stems = Counter(found[1] for key in keys if (found := _NUMBERED.fullmatch(key)))
    if stems and max(stems.values()) > 1:
        stem = stems.most_common(1)[0][0]
        raise DataError(
            f"dataset {index.url}: samples {stem}-NUMBER may be windows of one series, of whose rows nothing is said, "
            "so that a split may put the same rows on both sides; pack the csv anew, then it is said; if they are "
            "series of their own, give --by key"
        )


def _group(reader: SampleReader, number: int, name: str) -> str:
    sample = reader.read(number)
    values = decode.meta(decode.field(sample, ["json"]))
    if name not in values:
        there = ", ".join(sorted(values)) or "nothing"
        raise DataError(f"shard {sample.shard}, sample {sample.key!r}: no {name!r} in its json, which has {there}")
    return str(values[name])
