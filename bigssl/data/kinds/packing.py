"""Texts of different lengths side by side in rows of one length, without seeing each other.

[CLS] a a a [SEP] [CLS] b b [SEP] [PAD]
segments   1 1 1 1 1 2 2 2 2 0      attention only where equal
positions  0 1 2 3 4 0 1 2 3 0      each text begins at 0
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bigssl.data.errors import DataError


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of numbers of items, each row of at most `capacity` in all, every item once.

    Best-fit decreasing: the longest item first, each into the fullest row that still has room, else a new one; at most
    11/9 of the fewest possible rows plus one (Johnson 1974). Equal lengths go in their order. Raises DataError for an
    item that is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for item in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        length = lengths[item]
        if length > capacity:
            raise DataError(f"item {item} has {length} tokens, a row {capacity}; cut it into pieces first")
        place = bisect_left(room, (length, 0))
        left, row = room.pop(place) if place < len(room) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(item)
        insort(room, (left - length, row))
    return rows


def pack_rows(texts: Sequence[Mapping[str, Tensor]], length: int, fill: Mapping[str, int]) -> dict[str, Tensor]:
    """Packs texts with fields int64 [n] into rows.

    Args:
        texts: fields of equal length within a text.
        length: tokens of a row.
        fill: the fields, with what stands where there is no text.

    Returns:
        int64 [R, length] by field (R >= 1), and `segments` (1, 2, ... within a row; 0: no text) and `positions`.
    """
    names = list(fill)
    rows = best_fit([len(text[names[0]]) for text in texts], length) or [[]]
    packed = {name: torch.full((len(rows), length), value) for name, value in fill.items()}
    packed |= {name: torch.zeros(len(rows), length, dtype=torch.int64) for name in ("segments", "positions")}
    for row, items in enumerate(rows):
        begin = 0
        for segment, item in enumerate(items, 1):
            size = len(texts[item][names[0]])
            place = (row, slice(begin, begin + size))
            for name in names:
                packed[name][place] = texts[item][name]
            packed["segments"][place] = segment
            packed["positions"][place] = torch.arange(size)
            begin += size
    return packed


def split_rows(batch: Mapping[str, Sequence[Tensor]], sizes: str) -> list[dict[str, Tensor]]:
    """The pieces of a collated batch of `Ragged` fields, in order: each field cut as the field `sizes` says."""
    names = [name for name in batch if name != sizes]
    return [
        dict(zip(names, parts, strict=True))
        for counts, *fields in zip(batch[sizes], *(batch[name] for name in names), strict=True)
        for parts in zip(*(field.split(counts.tolist()) for field in fields), strict=True)
    ]
