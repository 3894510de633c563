"""Splits that leave no sample on both sides: series are parted by time, so that what is validated on comes after what
is trained on and shares no row with it; other samples of equal content are one group."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.tools.sources.base import Item, Stretch

_SAID = ("txt", "json")  # what a sample says of the rest of it; its content where there is nothing else


class Divided(NamedTuple):
    """The items of each part, and what is to be said of them."""

    parts: dict[str, list[Item]]
    said: str


def held_rows(rows: int, fraction: float) -> int:
    """How many of `rows` rows the last `fraction` of them are; never all of them."""
    return min(round(rows * fraction), rows - 1)


def by_time(items: Sequence[Item], part: str, fraction: float) -> Divided:
    """Parts of items with stretches: `part` has those that lie in the last `fraction` of the rows of their series,
    `train` those that end before the first of these begins, by the margin of the items. What lies across is in neither.
    A series that has not got both is trained on as a whole. Raises DataError where there is none left for `part`.
    """
    margin = max((item.margin for item in items), default=0)
    series: dict[str, list[Stretch]] = {}
    for item in items:
        series.setdefault(_of(item).series, []).append(_of(item))
    cuts = {name: _cut(stretches, fraction, margin) for name, stretches in series.items()}
    parts: dict[str, list[Item]] = {"train": [], part: []}
    for item in items:
        stretch, cut = _of(item), cuts[_of(item).series]
        if cut is None or stretch.stop <= cut - margin:
            parts["train"].append(item)
        elif stretch.start >= cut:
            parts[part].append(item)
    if not parts[part]:
        raise _too_short(part, fraction, margin, [stretch for found in series.values() for stretch in found])
    across = len(items) - len(parts["train"]) - len(parts[part])
    return Divided(parts, _said(part, fraction, list(cuts.values()), across))


def _of(item: Item) -> Stretch:
    if item.stretch is None:
        raise DataError(f"sample {item.key!r} says nothing of its rows, others do; a split by time needs it of all")
    return item.stretch


def _cut(stretches: Sequence[Stretch], fraction: float, margin: int) -> int | None:
    """First row of what is held out of a series; None where one side would be empty."""
    begin, end = min(stretch.start for stretch in stretches), max(stretch.stop for stretch in stretches)
    earliest = end - held_rows(end - begin, fraction)
    cut = min((stretch.start for stretch in stretches if stretch.start >= earliest), default=begin)
    return cut if any(stretch.stop <= cut - margin for stretch in stretches) else None


def _said(part: str, fraction: float, cuts: Sequence[int | None], across: int) -> str:
    whole, where = cuts.count(None), f" (from row {cuts[0]})" if len(cuts) == 1 else ""
    said = f"split by time: {part} is the last {fraction:g} of {len(cuts) - whole} series{where}, no row on both sides"
    said += f"; {whole} more, too short for both sides, are in train" if whole else ""
    return said + (f"; left out: {across} samples with rows of both sides" if across else "")


def _too_short(part: str, fraction: float, margin: int, stretches: Iterable[Stretch]) -> DataError:
    longest = max(stretches, key=lambda stretch: stretch.stop)
    rows, window = longest.stop, longest.rows
    held = held_rows(rows, fraction)
    if held >= window and rows - held >= window > rows - held - margin:
        return DataError(f"{part}={fraction:g}: of {longest.series!r}, the longest series, what it leaves is "
                         f"{rows - held} rows, fewer than a margin of {margin} and a window of {window}; choose a "
                         "smaller --margin")  # fmt: skip
    few, left = ("it", held) if held < window else ("what it leaves", rows - held)
    least = math.ceil(1000 * window / rows) / 1000
    advice = f"{part}={least:g} or more" if held < window and window * 2 <= rows else "a smaller --window"
    return DataError(
        f"{part}={fraction:g}: of {longest.series!r}, the longest series, {few} is {left} of {rows} rows, fewer than a "
        f"window of {window}; choose {advice}, or parts made of whole series (pack: --split-by series; split: --by "
        "series)"
    )


def content_hash(fields: Mapping[str, bytes]) -> bytes:
    """Of what a sample is: its picture, sound or series, whatever their names (not its mask, which is a label); of one
    without these the text, or else the json."""
    seen = sorted(data for name, data in fields.items()
                  if name.rpartition(".")[2] not in _SAID and name != decode.MASK)  # fmt: skip
    said = next((fields[name] for name in _SAID if name in fields), b"")
    digest = hashlib.blake2b(digest_size=16)
    for data in seen or [said]:
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def equal_together(items: Iterable[Item]) -> Iterator[Item]:
    """The items with a group that those of equal content share, and those of the group that each had, too. Each is
    loaded once. Raises DataError as they do, and OSError."""
    found, joined = list(items), dict[str | bytes, str | bytes]()
    for item in found:
        _join(joined, item.group, _content(item))
    names: dict[str | bytes, str] = {}  # the first by name, whatever the order of the items
    for item in found:
        root = _root(joined, item.group)
        names[root] = min(item.group, names.get(root, item.group))
    for item in found:
        yield replace(item, group=names[_root(joined, item.group)])


def _content(item: Item) -> bytes:
    if item.stretch is not None:
        raise DataError(f"--equal-together: has no effect on {item.key!r}, rows of a series, which are split by time")
    return content_hash(item.load())


def _root(joined: dict[str | bytes, str | bytes], name: str | bytes) -> str | bytes:
    while joined.setdefault(name, name) != name:
        joined[name] = joined[joined[name]]
        name = joined[name]
    return name


def _join(joined: dict[str | bytes, str | bytes], one: str | bytes, other: str | bytes) -> None:
    joined[_root(joined, one)] = _root(joined, other)
