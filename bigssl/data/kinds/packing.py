"""Texts of different lengths side by side in rows of one length, without seeing each other.

[CLS] a a a [SEP] [CLS] b b [SEP] [PAD]
segments   1 1 1 1 1 2 2 2 2 0      attention only where equal
positions  0 1 2 3 4 0 1 2 3 0      each text begins at 0
groups     [[0 1 2 3 4 . . .], [5 6 7 8 . . . .]]      texts of about one length, for attention side by side
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


def side_by_side(segments: Tensor) -> tuple[list[Tensor], Tensor]:
    """Texts of rows in groups of about one length.

    Args:
        segments: int64 [R, T] as `pack_rows` gives them.

    Returns:
        groups: int64 [texts, L] each, places among the R · T tokens, -1 behind the last token of a text. L is 8, 12,
            16, 24, 32, 48, ... or T: a text has two thirds of it or more, or less than 8 tokens.
        found: int64 [R · T], the place of each token among those of all groups end to end; one behind the last for
            what is no token.
    """
    rows, length = segments.shape
    before = torch.nn.functional.pad(segments, (1, 0))[:, :-1]
    begins = ((segments != before) & (segments > 0)).flatten().nonzero().flatten()
    inside = segments.flatten() > 0
    number = torch.zeros(rows * length, dtype=torch.int64)
    number[begins] = 1
    sizes = torch.bincount(number.cumsum(0)[inside] - 1, minlength=len(begins))
    widths = torch.tensor([_width(size, length) for size in sizes.tolist()], dtype=torch.int64)
    groups = []
    for width in widths.unique().tolist():
        places = torch.arange(width)
        chosen = widths == width
        groups.append(torch.where(places < sizes[chosen, None], begins[chosen, None] + places, -1))
    together = torch.cat([group.flatten() for group in groups]) if groups else begins
    found = torch.full((rows * length,), len(together))
    found[together[together >= 0]] = (together >= 0).nonzero().flatten()
    return groups, found


def _width(size: int, most: int) -> int:
    """The smallest of 8, 12, 16, 24, 32, 48, ... that holds `size`, `most` at most."""
    width = 8
    while width < size:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return min(width, most)


def split_rows(batch: Mapping[str, Sequence[Tensor]], sizes: str) -> list[dict[str, Tensor]]:
    """The pieces of a collated batch of `Ragged` fields, in order: each field cut as the field `sizes` says."""
    names = [name for name in batch if name != sizes]
    return [
        dict(zip(names, parts, strict=True))
        for counts, *fields in zip(batch[sizes], *(batch[name] for name in names), strict=True)
        for parts in zip(*(field.split(counts.tolist()) for field in fields), strict=True)
    ]
