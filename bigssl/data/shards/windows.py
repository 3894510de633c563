"""Long series as many windows: an index whose samples are rows of the .npy that shards hold, read by their bytes.

    stored sample:  rows 0 ... T-1 of a series [T, C], one after another in the tar
    its windows:    rows [s, s + length) for s = 0, stride, 2·stride, ... and last T - length, so none is left out

Which windows there are is known from the headers of the arrays, which are read when the index is opened. Everything
else (order, epochs, ranks, resume, `more`) sees samples like any other.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from bigssl.data.errors import DataError, damaged, display
from bigssl.data.npy import Header, npy_bytes, npy_header
from bigssl.data.shards import storage, tarwalk
from bigssl.data.shards.blocks import LONG, PART, joined_crc, sums_in
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.shards.prefetch import Extent, ExtentReader
from bigssl.data.shards.sidecar import Member, Row, ShardInfo, Sidecar

SHORT = ("refuse", "drop", "whole")
SAME_RATE = 0.1  # of a step, by which two series of one rate may differ, as months do
_LONGEST = 1e12  # seconds of a step
_MOST_JSON = 1 << 20  # bytes; each is held in memory
_TOGETHER = 256  # headers that are fetched at once
_TIME = re.compile(r"(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?")
SERIES, SAID = "npy", "json"


class _Stored(NamedTuple):
    """A sample of the shards. rows: T; width: bytes of a row; sums: uint32 [parts], or None where it is read whole."""

    key: str
    shard: int
    member: Member
    header: Header
    rows: int
    width: int
    sums: np.ndarray | None
    facts: Mapping[str, Any]


class WindowIndex(DatasetIndex):
    """The windows of `length` rows, one every `stride` rows, of the series of `base`.

    short: what becomes of a series of fewer rows: `refuse` it, `drop` it, or take it `whole`. mixed: series may be of
    several rates (their json says `step`, in seconds). Samples have the fields npy and json, which is that of the
    series with `series`, `start`, `rows`, `time` and a list of labels of the rows of the window. Raises DataError for
    shards that cannot be read by rows, and for what is no series.
    """

    def __init__(
        self, base: DatasetIndex, length: int, stride: int | None = None, *, short: str = "refuse", mixed: bool = False
    ) -> None:
        if length < 1 or (stride is not None and stride < 1) or short not in SHORT:
            raise DataError(f"windows of {length} rows every {stride}, short {short!r}; allowed: 1 or more rows, and "
                            f"{', '.join(SHORT)}")  # fmt: skip
        self._base, self.length, self.stride, self.short = base, length, stride or length, short
        self._series = list(_stored(base))
        self._refuse(mixed)
        counts = [self._count(stored.rows) for stored in self._series]
        self._firsts: list[int] = np.cumsum([0, *counts]).tolist()
        shards = np.bincount([stored.shard for stored in self._series], counts, len(base.shards)).astype(int).tolist()
        super().__init__(
            base.url, [replace(shard, samples=count) for shard, count in zip(base.shards, shards, strict=True)],
            base.remote,
        )  # fmt: skip

    def _refuse(self, mixed: bool) -> None:
        few = [stored for stored in self._series if stored.rows < self.length]
        if few and (self.short == "refuse" or (self.short == "drop" and len(few) == len(self._series))):
            shortest = min(few, key=lambda stored: stored.rows)
            raise DataError(f"dataset {display(self._base.url)}: {len(few)} of {len(self._series)} series are shorter "
                            f"than a window of {self.length} rows, {shortest.key!r} has {shortest.rows}; allowed: a "
                            "smaller length, or short: drop (leaves them out) or whole (takes them as they are)"
                            )  # fmt: skip
        rates = [(stored.key, step) for stored in self._series if is_step(step := stored.facts.get("step"))]
        if not mixed and (said := mixed_rates(rates)):
            raise DataError(f"dataset {display(self._base.url)}: {said}")

    def _count(self, rows: int) -> int:
        return int(self.short == "whole") if rows < self.length else -(-(rows - self.length) // self.stride) + 1

    @property
    def said(self) -> str:
        """What was made of the series, in words."""
        few = sum(stored.rows < self.length for stored in self._series)
        what = {"drop": "left out", "whole": "taken whole"}.get(self.short, "")
        told = "rows between windows are left out; " if self.stride > self.length else ""
        told += f"{len(self)} windows of {self.length} rows, one every {self.stride}, from {len(self._series)} series"
        return told + (f", of which {few} are shorter and {what}" if few else "")

    @property
    def fields(self) -> tuple[str, ...]:
        return (SAID, SERIES)

    @property
    def fingerprint(self) -> str:
        content = [self._base.fingerprint, self.length, self.stride, self.short]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def bytes_of_samples(self) -> np.ndarray:
        """Windows that overlap read what they share once each. (Of very many in a series, some are counted.)"""
        totals = np.zeros(len(self.shards))
        for stored, count in zip(self._series, np.diff(self._firsts).tolist(), strict=True):
            if rows := count and min(self.length, stored.rows):
                some = np.linspace(0, count - 1, min(count, 1_000_000)).astype(np.int64)
                start, stop = _span(stored, np.minimum(some * self.stride, stored.rows - rows), rows)
                totals[stored.shard] += count * float(np.mean(stop - start))
        return totals / np.maximum([shard.samples for shard in self.shards], 1)

    def row(self, number: int) -> tuple[ShardInfo, Row]:
        """Shard and row of window `number`: the parts of the array that hold it, with their checksum."""
        stored, first, rows = self._window(number)
        start, stop = map(int, _span(stored, first, rows))
        whole = Member(stored.member.offset + start, stop - start, _crc(stored, start, stop))
        key = f"{stored.key}@{first:06d}"
        return self.shards[stored.shard], Row(key, whole.offset, whole.length, whole.offset, {SERIES: whole})

    def shaped(self, number: int, fields: dict[str, bytes]) -> dict[str, bytes]:
        stored, first, rows = self._window(number)
        begin = stored.header.begin + first * stored.width
        inside = begin % PART if stored.sums is not None else begin
        data = fields[SERIES][inside : inside + rows * stored.width]
        values = np.frombuffer(data, stored.header.dtype).reshape(rows, *stored.header.shape[1:])
        facts = facts_of_rows(stored.facts, stored.key, stored.rows, first, rows)
        return {SERIES: npy_bytes(values), SAID: json.dumps(facts, ensure_ascii=False, sort_keys=True).encode()}

    def sidecar(self, shard: int) -> Sidecar:
        return self._base.sidecar(shard)

    def prepare(self, numbers: Iterable[int]) -> None:
        """Nothing is left to be loaded."""

    def close(self) -> None:
        self._base.close()
        super().close()

    def _window(self, number: int) -> tuple[_Stored, int, int]:
        """A series, and the first row and the number of rows of a window of it."""
        if not 0 <= number < len(self):
            raise IndexError(f"window {number} of {len(self)} in {display(self.url)}")
        at = bisect_right(self._firsts, number) - 1
        stored = self._series[at]
        rows = min(self.length, stored.rows)
        return stored, min((number - self._firsts[at]) * self.stride, stored.rows - rows), rows


def _span(stored: _Stored, first: Any, rows: int) -> tuple[Any, Any]:
    """Bytes [start, stop) of the array that are read for windows that begin at row (or rows) `first`."""
    if stored.sums is None:
        return np.zeros_like(first), np.full_like(first, stored.member.length)
    begin = stored.header.begin + first * stored.width
    return begin // PART * PART, np.minimum(-(-(begin + rows * stored.width) // PART) * PART, stored.member.length)


def is_step(step: object) -> bool:
    """Whether it is a number of seconds."""
    return isinstance(step, int | float) and not isinstance(step, bool) and 0 < step < _LONGEST


def mixed_rates(steps: Sequence[tuple[str, Any]]) -> str:
    """What is wrong with the steps (seconds) of series, (key, step) each, since two shards may have one key; nothing
    where they are of one rate."""
    if not steps:
        return ""
    (fast, least), (slow, most) = (choose(steps, key=lambda each: each[1]) for choose in (min, max))
    if most - least <= SAME_RATE * most:
        return ""
    return (
        f"mixed sampling rates: {fast!r} has a row every {least:g} s, {slow!r} every {most:g} s; allowed: rates: "
        "mixed, where that is meant, or `bigssl shards pack --resample SECONDS`"
    )


def _crc(stored: _Stored, start: int, stop: int) -> int:
    if stored.sums is None:
        return stored.member.crc32
    parts = range(start // PART, -(-stop // PART))
    last = stored.member.length
    return joined_crc((int(stored.sums[part]), min(PART, last - part * PART)) for part in parts)


def facts_of_rows(whole: Mapping[str, Any], key: str, total: int, first: int, rows: int) -> dict[str, Any]:
    """The json of rows `first` to `first + rows` of a series of `total` rows, whose json is `whole`."""
    facts = dict(whole)
    time, step, label = facts.get("time"), facts.get("step"), facts.get("label")
    if isinstance(time, str) and first:
        facts["time"] = _later(time, step, first) if is_step(step) and not facts.get("uneven") else None
    if isinstance(label, list) and len(label) == total:
        facts["label"] = label[first : first + rows]
    start = facts.get("start")
    said = {"series": facts.get("series", key), "rows": rows,
            "start": (start if isinstance(start, int) else 0) + first}  # fmt: skip
    return {name: value for name, value in (facts | said).items() if value is not None or name != "time"}


def _later(time: str, step: Any, rows: int) -> str | None:
    """`rows` steps of seconds behind an ISO time, with its offset; None where it is none, as of a `time` that some
    other program wrote, or where the calendar ends."""
    found = _TIME.fullmatch(time)
    if found is None:
        return None
    try:
        passed, rest = divmod(int((found[2] or "").ljust(9, "0")) + round(step * 10**9) * rows, 10**9)
        whole = datetime.fromisoformat(found[1]) + timedelta(seconds=passed)
    except (ValueError, OverflowError):
        return None
    return f"{whole.isoformat()}{f'.{rest:09d}'.rstrip('0') if rest else ''}{found[3] or ''}"


def _stored(base: DatasetIndex) -> Iterator[_Stored]:
    """The series of an index, with their headers and what their json says."""
    reader = ExtentReader(base.remote)
    try:
        for begin in range(0, len(base), _TOGETHER):
            rows = [(number, *base.row(number)) for number in range(begin, min(begin + _TOGETHER, len(base)))]
            for _, shard, row in rows:
                _refuse_unreadable(base, shard, row)
            extents = [_extent(shard, member) for _, shard, row in rows for member in _looked_at(row)]
            reader.announce([extent for extent in extents if not storage.is_local(extent.shard.url)], [])
            for number, shard, row in rows:
                yield _read(base, reader, number, shard, row)
    finally:
        reader.close()
        base.close()


def _refuse_unreadable(base: DatasetIndex, shard: ShardInfo, row: Row) -> None:
    where = f"shard {display(shard.url)}, sample {row.key!r}"
    if tarwalk.is_compressed(shard.name):
        raise DataError(f"{where}: rows of a series cannot be read alone out of a compressed shard; pack it without "
                        "--compress, or take its samples as they are, without `windows`")  # fmt: skip
    if SERIES not in row.members:
        raise DataError(f"{where}: no field {SERIES!r}, so no series to take windows of; it has "
                        f"{', '.join(sorted(row.members))}")  # fmt: skip
    if row.members[SERIES].length >= LONG and not row.members[SERIES].parts:
        raise DataError(f"{where}: the index is of a version without checksums of parts, so that windows could not be "
                        f"verified; run `bigssl shards index {display(base.url)}`")  # fmt: skip
    if SAID in row.members and row.members[SAID].length > _MOST_JSON:
        raise DataError(f"{where}: its json has {row.members[SAID].length} bytes, {_MOST_JSON} are allowed of a series "
                        "of which windows are taken (each is held in memory): leave long labels out when packing"
                        )  # fmt: skip


def _looked_at(row: Row) -> list[Member]:
    """The parts of a sample that are read when the index is opened."""
    series = row.members[SERIES]
    said = [row.members[SAID]] if SAID in row.members else []
    return [series._replace(length=PART) if series.parts else series, *said]


def _extent(shard: ShardInfo, member: Member) -> Extent:
    return Extent(shard, member.offset, member.offset + member.length)


def _read(base: DatasetIndex, reader: ExtentReader, number: int, shard: ShardInfo, row: Row) -> _Stored:
    series = row.members[SERIES]
    sums = sums_in(series.parts) if series.parts else None
    facts: dict[str, Any] = {}
    try:
        for member in _looked_at(row):
            data = reader.read(shard, member.offset, member.length)
            crc = int(sums[0]) if sums is not None and member.offset == series.offset else member.crc32
            if len(data) < member.length or zlib.crc32(data) != crc:
                raise DataError("it differs from its checksum: damaged, truncated, or changed after it was indexed")
            if member.offset == series.offset:
                header = npy_header(data)
            else:
                found = json.loads(data)
                facts = found if isinstance(found, dict) else {}
        _refuse_shape(header, series.length)
    except (OSError, ValueError, DataError, RecursionError) as error:
        raise damaged(shard.url, key=row.key, offset=series.offset, cause=str(error), dataset=base.url) from error
    rows, member = header.shape[0], series._replace(parts="")
    return _Stored(row.key, base.shard_of(number), member, header, rows, header.bytes // rows, sums, facts)


def _refuse_shape(header: Header, length: int) -> None:
    """Raises DataError for an array whose rows do not lie one after another as numbers [T] or [T, C]."""
    shape = header.shape
    if len(shape) not in (1, 2) or header.dtype.kind not in "iuf" or min(shape) < 1:
        raise DataError(f"series is {header.dtype}{list(shape)}, numbers of shape [T] or [T, C] are needed")
    if header.begin + header.bytes != length:
        raise DataError(f"series is not an .npy array: its header promises {header.bytes} bytes, "
                        f"{length - header.begin} follow")  # fmt: skip
    if header.fortran and min(shape) > 1:
        raise DataError("series is stored column by column (Fortran's order), so that rows do not lie together; save "
                        "it anew with numpy.ascontiguousarray")  # fmt: skip
