"""Pairs of held-out documents, drawn as the task of a head draws them, and what a cosine tells of them.

A pair follows from the key of its document and its number there alone (and from tokenizer and context): it is the same
for every contender and in every run. The documents of which others are drawn are all that are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.data.kinds.texts import pairs
from bigssl.data.loading.collate import collate
from bigssl.data.order.stream import SampleReader
from bigssl.data.shards.index import DatasetIndex
from bigssl.transfer.features import samples_at
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.texts.passages import first_sentences

TRIES = 20  # documents that are drawn beside another one until one has a sentence


class HeldOutPair(NamedTuple):
    """document: its key. drawn: the two pieces and the label. inputs: as the network takes them."""

    document: str
    drawn: pairs.DrawnPair
    inputs: dict[str, np.ndarray]


class PairBatch(NamedTuple):
    """inputs: int64 [B, T] each."""

    documents: list[str]
    drawn: list[pairs.DrawnPair]
    inputs: dict[str, Tensor]


@dataclass
class Unpaired:
    """Keys of a rank's documents of which no pair was drawn, and how many pairs were not as they should be."""

    short: list[str] = field(default_factory=list)
    recurring: int = 0
    without_token: int = 0

    @staticmethod
    def said(where: str, everywhere: Sequence[Unpaired]) -> list[str]:
        """Sentences on those of all ranks."""
        short = [key for part in everywhere for key in part.short]
        found = [f"{where}: {len(short)} documents have fewer than two sentences, and no pair (the first is "
                 f"{short[0]!r})."] if short else []  # fmt: skip
        if recurring := sum(part.recurring for part in everywhere):
            found.append(f"{where}: of {recurring} pairs, the passage that was drawn of another document stands in the "
                         "first as well; what follows took its place.")  # fmt: skip
        if without := sum(part.without_token for part in everywhere):
            found.append(f"{where}: {without} pairs with a passage without a token are left out.")
        return found


@dataclass(frozen=True)
class Drawing:
    """How pairs are drawn.

    Attributes:
        kind: a name in `pairs.DRAWN`.
        count: of a document, at most: no more than it has places to be cut at.
        short: as in the task, the share that is made shorter.
    """

    kind: str
    takes: TextInput
    count: int
    short: float

    def of(self, url: str, numbers: Sequence[int], everyone: Sequence[int], left: Unpaired) -> Iterator[HeldOutPair]:
        """Of the documents with these numbers, each beside others of `everyone`. Raises DataError."""
        index = DatasetIndex.load(url)
        with_others = _Others(index, everyone)
        for number, sample in zip(numbers, samples_at(index, numbers), strict=True):
            document, _ = first_sentences(sample)
            if len(document.spans) < 2:
                left.short.append(sample.key)
            for place in range(min(self.count, len(document.spans) - 1)):
                rng = np.random.default_rng([place, *sample.key.encode()])
                yield from self._pair(sample.key, document, rng, with_others.drawn_by(number, rng), left)

    def _pair(
        self, key: str, document: pairs.Sentences, rng: np.random.Generator, other: Callable[[], pairs.Sentences],
        left: Unpaired,
    ) -> Iterator[HeldOutPair]:  # fmt: skip
        tokenizer, length = self.takes.tokenizer, self.takes.length
        at = pairs.neighbours_in(document, tokenizer, rng, pairs.target_of(length, self.short, rng))
        drawn = pairs.DRAWN[self.kind](document, at, rng, other)
        left.recurring += drawn.recurring
        try:
            inputs, _ = pairs.encode_pair(tokenizer, drawn.first, drawn.second, length, rng)
        except DataError:  # of what the tokenizer knows nothing
            left.without_token += 1
            return
        yield HeldOutPair(key, drawn, inputs)


class _Others:
    """The other documents of a dataset, drawn by chance."""

    def __init__(self, index: DatasetIndex, everyone: Sequence[int]) -> None:
        self._everyone, reader = everyone, SampleReader(index)
        self._sentences = lru_cache(maxsize=64)(lambda number: first_sentences(reader.read(number))[0])

    def drawn_by(self, own: int, rng: np.random.Generator) -> Callable[[], pairs.Sentences]:
        """One that is not `own`. It raises DataError where none has a sentence."""

        def draw() -> pairs.Sentences:
            for _ in range(TRIES if len(self._everyone) > 1 else 0):
                place = int(rng.integers(len(self._everyone) - 1))
                number = self._everyone[place]
                found: pairs.Sentences = self._sentences(number if number < own else self._everyone[place + 1])
                if found.spans:
                    return found
            raise DataError("no other document with a sentence to be drawn beside one; allowed: 2 documents or more")

        return draw


def pair_batches(found: Iterable[HeldOutPair], batch: int) -> Iterator[PairBatch]:
    """As many at a time as a forward pass takes."""
    left = iter(found)
    while part := list(islice(left, batch)):
        documents, drawn, inputs = map(list, zip(*part, strict=True))
        yield PairBatch(documents, drawn, collate(inputs))


class Threshold(NamedTuple):
    """Says 1 where a number lies above `least`, or if not `above`, where it does not."""

    least: float
    above: bool

    @classmethod
    def of(cls, numbers: np.ndarray, labels: np.ndarray) -> Threshold:
        """The one that is right most often for float [N] numbers with labels int [N], 0 or 1, N > 0."""
        order = np.argsort(numbers, kind="stable")
        ones = np.concatenate([[0], np.cumsum(labels[order])])  # of those up to each place
        zeros = np.arange(len(labels) + 1) - ones
        right = zeros + ones[-1] - ones  # where all behind a place are called 1
        between = np.concatenate([[True], np.diff(numbers[order]) > 0, [True]])  # no threshold within equal numbers
        best = [int(np.where(between, each, -1).argmax()) for each in (right, len(labels) - right)]
        above = right[best[0]] >= len(labels) - right[best[1]]
        place = best[0] if above else best[1]
        return cls(-np.inf if place == 0 else float(numbers[order[place - 1]]), bool(above))

    def says(self, numbers: np.ndarray) -> np.ndarray:
        """int64 [N]"""
        return ((numbers > self.least) == self.above).astype(np.int64)
