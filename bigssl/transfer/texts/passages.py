"""Held-out documents cut into passages, of which some ask for the one that follows them.

    document ── sentences ── passages of as many each, none of which overlap ── asks ─▶ meant

Passages are cut alike for every network, whatever its tokenizer: by sentences. Those of equal words, spaces apart, are
one candidate; what stands more than once in all documents (greetings, headings, copies) neither asks nor is meant, as
several would be right, or the one that asks itself. Which of the others ask follows from the key of the document and
the place in it alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

from bigssl.data.kinds.texts.pairs import Sentences, lined_text, split_sentences
from bigssl.data.sample import Sample
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import samples_at
from bigssl.transfer.texts.documents import CHARACTERS


class Cut(NamedTuple):
    """A document. passages: in order; empty where it has no sentence. whole: nothing of it was left out."""

    key: str
    passages: list[str]
    whole: bool


def cut_document(sample: Sample, sentences: int) -> Cut:
    """Passages of `sentences` each, the last one of fewer. Raises DataError where it is no document."""
    found, whole = first_sentences(sample)
    ends = [*range(sentences, len(found.spans), sentences), len(found.spans)] if found.spans else []
    passages = [found.between(begin, end) for begin, end in pairwise([0, *ends])]
    return Cut(sample.key, passages, whole)


def first_sentences(sample: Sample) -> tuple[Sentences, bool]:
    """(those of a document, as far as evaluations read one; whether that is all of it). Raises DataError."""
    text = lined_text(sample)
    return split_sentences(text[:CHARACTERS]), len(text) <= CHARACTERS


def cut_documents(bench: Bench, url: str, limit: int | None, field: str, sentences: int) -> list[Cut]:
    """All documents of a dataset, on every rank. field: that of the section with the `url`. A collective."""
    key = ("passages", url, limit, sentences)
    if key not in bench.kept:
        index = bench.index(url)
        numbers = bench.numbers(index, limit, field)
        found = bench.team.gather(lambda: [cut_document(each, sentences) for each in samples_at(index, numbers)])
        bench.kept[key] = [document for part in found for document in part]
    documents: list[Cut] = bench.kept[key]
    if cut := sum(not document.whole for document in documents):
        bench.note(f"{bench.where}.{field}: of {cut} documents, the first {CHARACTERS:,} characters are taken.")
    return documents


class Followed(NamedTuple):
    """Different passages of documents, and which of them is followed by which.

    Attributes:
        texts: [N], the candidates.
        meant: {number of a text that asks: that of the one which follows it}, ascending.
        documents: the key of the document of each that asks.
        common: how many of the N stand more than once.
    """

    texts: list[str]
    meant: dict[int, int]
    documents: list[str]
    common: int

    @classmethod
    def of(cls, documents: Sequence[Cut], most: int) -> Followed:
        """most: how many ask."""
        numbers: dict[str, int] = {}
        texts: list[str] = []
        rows = []
        for document in documents:
            for passage in document.passages:
                if numbers.setdefault(" ".join(passage.split()), len(texts)) == len(texts):
                    texts.append(passage)
            rows.append([numbers[" ".join(passage.split())] for passage in document.passages])
        times = Counter(number for row in rows for number in row)
        asking = [
            (_chance(document.key, place), one, other, document.key)
            for document, row in zip(documents, rows, strict=True)
            for place, (one, other) in enumerate(pairwise(row))
            if times[one] == times[other] == 1
        ]
        chosen = sorted((one, other, key) for _, one, other, key in sorted(asking)[:most])
        meant = {one: other for one, other, _ in chosen}
        return cls(texts, meant, [key for _, _, key in chosen], sum(count > 1 for count in times.values()))


def some_passages(documents: Sequence[Cut], most: int) -> list[str]:
    """As many different ones at most, chosen by document and place."""

    def all_of_them() -> Iterator[tuple[bytes, str]]:
        for document in documents:
            yield from ((_chance(document.key, place), each) for place, each in enumerate(document.passages))

    return list(dict.fromkeys(passage for _, passage in sorted(all_of_them())[:most]))


def _chance(key: str, place: int) -> bytes:
    return blake2b(f"{key}\0{place}".encode(), digest_size=8).digest()
