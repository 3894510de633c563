"""Errors of transcripts, in words and in characters (WER, CER)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Edits(NamedTuple):
    """edits: words or characters to substitute, insert or delete; length: words or characters that are right."""

    edits: int
    length: int


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """The fewest substitutions, insertions and deletions that make `other` of `one` (Levenshtein 1966)."""
    codes = {symbol: code for code, symbol in enumerate({*one, *other})}
    known = np.array([codes[symbol] for symbol in other], dtype=np.int64)
    places = np.arange(len(other) + 1)
    row = places.copy()  # of the first 0, 1, ... symbols of `one`, the distance to each beginning of `other`
    for symbol in one:
        best = row + 1
        best[1:] = np.minimum(best[1:], row[:-1] + (known != codes[symbol]))
        row = np.minimum.accumulate(best - places) + places  # insertions, from the left
    return int(row[-1])


def word_edits(truth: str, found: str) -> Edits:
    """Words are what spaces part."""
    return Edits(edit_distance(truth.split(), found.split()), len(truth.split()))


def character_edits(truth: str, found: str) -> Edits:
    """Spaces count as characters."""
    return Edits(edit_distance(truth, found), len(truth))


def error_rate(parts: Sequence[Edits]) -> float:
    """Edits of all texts over their length: above 1 where more was said than is there. NaN where nothing is there."""
    length = sum(part.length for part in parts)
    return sum(part.edits for part in parts) / length if length else float("nan")
