"""Stored series cut in two by time, for `bigssl shards split --cut`: what is validated on comes after what is trained
on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from bigssl.data.errors import DataError
from bigssl.data.kinds.series import stored_array
from bigssl.data.npy import npy_bytes, npy_header
from bigssl.data.order.stream import SampleReader
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.shards.windows import SAID, SERIES, facts_of_rows
from bigssl.data.tools.parts import held_rows
from bigssl.data.tools.sources.base import Item, Stretch, json_bytes
from bigssl.data.tools.sources.shards import stretches_of


class _Rows(NamedTuple):
    """Rows of a stored series of `total` rows."""

    reader: SampleReader
    number: int
    total: int
    first: int
    rows: int

    def load(self) -> dict[str, bytes]:
        """npy of these rows, and json that says which they are."""
        sample = self.reader.read(self.number)
        values = stored_array(sample.fields[SERIES])[self.first : self.first + self.rows]
        facts = facts_of_rows(_facts(sample.fields), sample.key, self.total, self.first, self.rows)
        return {SERIES: npy_bytes(values), SAID: json_bytes(facts)}

    def stamp(self) -> object:
        """Which rows of which sample of which version of a shard."""
        shard, row = self.reader.index.row(self.number)
        return [shard.checksum, row.origin, self.first, self.rows]


def _facts(fields: dict[str, bytes]) -> dict[str, Any]:
    found = json.loads(fields[SAID]) if SAID in fields else {}
    return found if isinstance(found, dict) else {}


def cut_in_two(index: DatasetIndex, fraction: float, margin: int = 0) -> Iterator[Item]:
    """Of each series [T] or [T, C] of `index` the last `fraction` of its rows, and those before them but for `margin`
    rows, as items with stretches (see `by_time`); one that has not got both stays whole. Keys: KEY-000000, KEY-000001.
    Raises DataError for samples that are no series or pieces of one already."""
    if stretches_of(index) is not None:
        raise DataError(f"dataset {index.url}: its samples are pieces of series already, which a split without --cut "
                        "parts by time")  # fmt: skip
    reader = SampleReader(index)
    for number in reader.ahead(range(len(index))):
        sample = reader.read(number)
        others = sorted(set(sample.fields) - {SERIES, SAID})
        if SERIES not in sample.fields or others:
            what = f"has {', '.join(others)}, which no row says which part of belongs where" if others else "has no npy"
            raise DataError(f"{sample.where}: --cut needs series, this one {what}")
        try:
            total = npy_header(sample.fields[SERIES]).shape[0]
        except (DataError, IndexError) as error:
            raise DataError(f"{sample.where}: no series ({error})") from error
        cut = total - held_rows(total, fraction)
        parts = [(0, cut - margin), (cut, total)] if margin < cut < total else [(0, total)]
        for place, (first, stop) in enumerate(parts):
            rows = _Rows(reader, number, total, first, stop - first)
            yield Item(f"{sample.key}-{place:06d}", sample.key, rows.load, rows.stamp,
                       stretch=Stretch(sample.key, first, stop - first))  # fmt: skip
