"""Sentences of a text, and changed texts: sentences in another order, words replaced, left out or exchanged.

Every function is pure: the same text and a generator in the same state give the same result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[”’」』）]*|\n+")


def sentences(document: str | Sequence[str]) -> list[str]:
    """The sentences of a document (see `decode.document`), without white space around them, none empty.

    Running text ends a sentence at a line break, after . ! ? … (and closing quotes or brackets) before white space, and
    after 。！？. Abbreviations end sentences as well: cutting "Dr. No" costs a pretext task little, a list of every
    language's abbreviations would cost more.
    """
    if not isinstance(document, str):
        return [sentence.strip() for sentence in document if sentence.strip()]
    ends = [0, *(found.end() for found in _END.finditer(document)), len(document)]
    parts = (document[begin:end].strip() for begin, end in zip(ends, ends[1:], strict=False))
    return [part for part in parts if part]


def permute(parts: Sequence[str], rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """(parts in random order, int64 [n] with the number that each had): BART's sentence permutation (Lewis et al.
    2020, section 2.2), and the target of a task that asks for the order."""
    order = rng.permutation(len(parts))
    return [parts[number] for number in order], order


def substitute(
    words: Sequence[str], rng: np.random.Generator, share: float, choices: Callable[[str], Sequence[str]]
) -> list[str]:
    """`share` of the words, one at least, replaced by one of their `choices` (synonyms; or the whole vocabulary).

    EDA's synonym replacement (Wei and Zou 2019). Words without a choice stay and do not count.
    """
    changed = list(words)
    replaceable = [(place, found) for place, word in enumerate(words) if (found := choices(word))]
    picked = rng.permutation(len(replaceable))[: _count(share, len(words))]
    for number in picked:
        place, found = replaceable[number]
        changed[place] = found[int(rng.integers(len(found)))]
    return changed


def delete(words: Sequence[str], rng: np.random.Generator, share: float) -> list[str]:
    """Each word left out with probability `share`; one stays where all would go (EDA's random deletion)."""
    kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= share]
    return kept if kept or not words else [words[int(rng.integers(len(words)))]]


def swap(words: Sequence[str], rng: np.random.Generator, share: float) -> list[str]:
    """Two random words exchanged, `share` times the number of words, once at least (EDA's random swap)."""
    changed = list(words)
    for _ in range(_count(share, len(words)) if len(words) > 1 else 0):
        one, two = rng.choice(len(words), size=2, replace=False)
        changed[one], changed[two] = changed[two], changed[one]
    return changed


def _count(share: float, words: int) -> int:
    return max(1, round(share * words)) if share > 0 else 0
