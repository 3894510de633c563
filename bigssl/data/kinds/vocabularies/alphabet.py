"""Which characters get into a vocabulary of a given size, and what share of the text the others cost.

WordPiece needs an entry for each character that begins a word and another for each inside one, and a word with a
character that is not there is [UNK] as a whole (`Alphabet.of`). In a unigram vocabulary a character is one entry, and
one that is not there is [UNK] alone (`Alphabet.apart`). Bytes are all there, always (`Alphabet.all_of`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

LONGEST = 100  # characters of a word: tokenizers' WordPiece makes a longer one [UNK]
COVERED = 0.9995  # of the text: SentencePiece's (Kudo and Richardson 2018), for which rarer characters may be left out
MANY = 0.02  # share of the text that is unknown, from which on the vocabulary is too small for it


@dataclass(frozen=True)
class Alphabet:
    """Attributes:
        ranked: all characters, the most frequent first; the first `count` of them are kept.
        costs: entries that the first 1, 2, ... of them take.
        inside: characters that stand inside words.
        lost: share of the text that becomes [UNK] where the first 0, 1, 2, ... are kept.
        needed: how many have to be kept, whatever the size.
    """

    ranked: list[str]
    costs: list[int]
    inside: frozenset[str]
    lost: list[float]
    count: int = 0
    needed: int = 1

    @classmethod
    def of(cls, words: Mapping[str, int]) -> Alphabet:
        """words: how often each occurs."""
        counts = _characters(words)
        ranked = _ranked(counts)
        inside = frozenset(character for word in words for character in word[1:])
        place = {character: rank for rank, character in enumerate(ranked, 1)}
        saved = [0] * (len(ranked) + 1)  # characters of the words that are whole from this rank on
        for word, times in words.items():
            if len(word) <= LONGEST:
                saved[max(place[character] for character in word)] += len(word) * times
        total = max(1, counts.total())
        costs = list(accumulate(1 + (character in inside) for character in ranked))
        return cls(ranked, costs, inside, [1 - known / total for known in accumulate(saved)])

    @classmethod
    def apart(cls, words: Mapping[str, int]) -> Alphabet:
        """words: how often each occurs; an entry a character, and what is not there costs itself alone."""
        counts = _characters(words)
        ranked, total = _ranked(counts), max(1, counts.total())
        kept = accumulate((counts[character] for character in ranked), initial=0)
        return cls(ranked, list(range(1, len(ranked) + 1)), frozenset(), [1 - known / total for known in kept])

    @classmethod
    def all_of(cls, characters: Iterable[str]) -> Alphabet:
        """These, each of them kept: nothing is ever lost."""
        ranked = sorted(characters)
        size = len(ranked)
        return cls(ranked, list(range(1, size + 1)), frozenset(), [0.0] * (size + 1), size, size)

    def within(self, room: int) -> Alphabet:
        """With as many characters as fit into `room` entries: all where they take half of it at most, which leaves room
        for longer pieces; else as many as take half or cover the text; never fewer than are needed."""
        if not self.costs or self.costs[-1] <= room // 2:
            return replace(self, count=len(self.ranked))
        wanted = max(self._fitting(room // 2), min(self._covering, self._fitting(room)), self.needed)
        return replace(self, count=wanted)

    def filled(self, room: int) -> Alphabet:
        """With further ones that `room` more entries hold."""
        taken = self.costs[self.count - 1] if self.count else 0
        return replace(self, count=max(self.count, self._fitting(taken + room)))

    @property
    def entries(self) -> list[str]:
        kept = self.ranked[: self.count]
        return sorted(f"##{each}" for each in kept if each in self.inside) + sorted(kept)

    @property
    def unknown(self) -> float:
        """Share of the text that becomes [UNK]."""
        return self.lost[self.count]

    @property
    def enough(self) -> int:
        """Entries of the characters that cover the text."""
        return self.costs[self._covering - 1] if self._covering else 0

    @property
    def least(self) -> int:
        """Entries that the characters take which have to be kept; 0 where there are none."""
        return self.costs[self.needed - 1] if self.costs else 0

    @property
    def least_is(self) -> str:
        """Those in words."""
        return "one character" if self.needed == 1 else f"{self.needed} bytes"

    def _fitting(self, room: int) -> int:
        return sum(cost <= room for cost in self.costs)

    @property
    def _covering(self) -> int:
        """Characters with which no more is lost than has to be: the least, and of the rest the share that may be."""
        return next(count for count, lost in enumerate(self.lost) if lost <= self.lost[-1] + 1 - COVERED)


def _characters(words: Mapping[str, int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for character in word:
            counts[character] += times
    return counts


def _ranked(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda character: (-counts[character], character))
