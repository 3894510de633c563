"""Two segments of text and whether they belong together: next sentence prediction and sentence order prediction.

A document is its sentences, each a list of tokens (or words). Every function is pure: the same documents and a
generator in the same state give the same pair. Labels are those of transformers' heads: 0 where the second segment
follows the first, 1 where it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bigssl.data.errors import DataError

Document = Sequence[Sequence[int]]


class Pair(NamedTuple):
    """Two segments of one token at least, and their label."""

    first: list[int]
    second: list[int]
    label: int


def partner(own: int, size: int, rng: np.random.Generator) -> int:
    """Number of another of `size` documents than `own`, each as likely: which one to hand to `next_pair`."""
    if size < 2:
        raise DataError(f"a second document is needed, the dataset has {size}")
    other = int(rng.integers(size - 1))
    return other + (other >= own)


def next_pair(document: Document, other: Document, rng: np.random.Generator, length: int) -> Pair:
    """Next sentence prediction (Devlin et al. 2019, 3.1): half of the pairs follow one another, half are strangers.

    The first segment is one or more neighbouring sentences of `document`, the second what follows them (label 0) or
    sentences of `other` from a random one on (label 1). Together they have at most `length` tokens: the longer one is
    cut first, the first segment at its beginning, the second at its end, so that what follows still does. A document
    of one sentence has nothing that follows: its label is 1. Raises DataError for documents without tokens.
    """
    sentences, strangers = _spoken(document), _spoken(other)
    follows = rng.random() < 0.5 and len(sentences) > 1
    chunk = _chunk(sentences, rng, length)
    split = int(rng.integers(1, len(chunk))) if len(chunk) > 1 else 1
    first, second = _join(chunk[:split]), _join(chunk[split:])
    if not follows:
        start = int(rng.integers(len(strangers)))
        second = _join(strangers[start:])[:length]
    return Pair(*_shorten(first, second, length), int(not follows))


def order_pair(document: Document, rng: np.random.Generator, length: int) -> Pair | None:
    """Sentence order prediction (ALBERT, Lan et al. 2020): neighbouring segments of one document, half of them swapped.

    Label 1: swapped. At most `length` tokens, cut as in `next_pair` before they are swapped. None where the document
    has fewer than two sentences, and so no order.
    """
    sentences = [list(sentence) for sentence in document if len(sentence)]
    if len(sentences) < 2:
        return None
    swapped = rng.random() < 0.5
    chunk = _chunk(sentences, rng, length)
    split = int(rng.integers(1, len(chunk)))
    first, second = _shorten(_join(chunk[:split]), _join(chunk[split:]), length)
    return Pair(second, first, 1) if swapped else Pair(first, second, 0)


def framed(pair: Pair, length: int, *, cls: int, sep: int, pad: int) -> dict[str, np.ndarray]:
    """[CLS] first [SEP] second [SEP] as input_ids, token_type_ids and attention_mask, int64 [length]; the label as
    int64 []. The pair may have `length` - 3 tokens."""
    ids = [cls, *pair.first, sep, *pair.second, sep]
    if len(ids) > length:
        raise DataError(f"a pair of {len(ids) - 3} tokens does not fit {length} with [CLS] and two [SEP]")
    place = np.arange(length)
    return {
        "input_ids": np.array(ids + [pad] * (length - len(ids)), dtype=np.int64),
        "token_type_ids": ((place >= len(pair.first) + 2) & (place < len(ids))).astype(np.int64),
        "attention_mask": (place < len(ids)).astype(np.int64),
        "label": np.array(pair.label, dtype=np.int64),
    }


def _spoken(document: Document) -> list[list[int]]:
    sentences = [list(sentence) for sentence in document if len(sentence)]
    if not sentences:
        raise DataError("a document without tokens has no segments")
    return sentences


def _chunk(sentences: list[list[int]], rng: np.random.Generator, length: int) -> list[list[int]]:
    """Neighbouring sentences from a random one on, until they have `length` tokens; two at least if there are two."""
    start = int(rng.integers(max(1, len(sentences) - 1)))
    total, end = 0, start
    while end < len(sentences) and (total < length or end < start + 2):
        total += len(sentences[end])
        end += 1
    return sentences[start:end]


def _join(sentences: list[list[int]]) -> list[int]:
    return [token for sentence in sentences for token in sentence]


def _shorten(first: list[int], second: list[int], length: int) -> tuple[list[int], list[int]]:
    """Takes tokens from the longer one until both fit."""
    half = length // 2
    room = max(length - len(second), length - half)  # for the first; at least half of `length`, rounded up
    first = first[max(0, len(first) - room) :]
    return first, second[: length - len(first)]
