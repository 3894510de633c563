"""Pairs are neighbours or strangers, half and half, and say truly which."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.pairs import Pair, framed, next_pair, order_pair, partner


def document(sizes: list[int], first: int) -> list[list[int]]:
    """Sentences of `sizes` tokens, numbered through from `first`."""
    begins = np.cumsum([first, *sizes])
    return [list(range(begin, begin + size)) for begin, size in zip(begins.tolist(), sizes, strict=False)]


def follows(tokens: list[int]) -> bool:
    return tokens == list(range(tokens[0], tokens[0] + len(tokens)))


sentence_sizes = st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any)
OTHERS = 100_000


@settings(max_examples=300, deadline=None)
@given(sentence_sizes, sentence_sizes, st.integers(2, 40), st.integers(0, 2**32))
def test_next_pairs(sizes: list[int], other: list[int], length: int, seed: int) -> None:
    pair = next_pair(document(sizes, 0), document(other, OTHERS), np.random.default_rng(seed), length)
    assert pair == next_pair(document(sizes, 0), document(other, OTHERS), np.random.default_rng(seed), length)
    assert pair.first and pair.second and len(pair.first) + len(pair.second) <= length
    assert follows(pair.first) and follows(pair.second) and max(pair.first) < OTHERS
    assert pair.label == int(pair.second[0] >= OTHERS)
    if pair.label == 0:
        assert follows(pair.first + pair.second)  # nothing was cut between them
    if len([size for size in sizes if size]) == 1:
        assert pair.label == 1


@settings(max_examples=300, deadline=None)
@given(sentence_sizes, st.integers(2, 40), st.integers(0, 2**32))
def test_order_pairs(sizes: list[int], length: int, seed: int) -> None:
    pair = order_pair(document(sizes, 0), np.random.default_rng(seed), length)
    if len([size for size in sizes if size]) < 2:
        assert pair is None
        return
    assert pair is not None and pair.first and pair.second
    assert len(pair.first) + len(pair.second) <= length
    assert follows(pair.second + pair.first if pair.label else pair.first + pair.second)


def half(labels: list[int]) -> bool:
    return abs(np.mean(labels) - 0.5) < 4 * 0.5 / np.sqrt(len(labels))


def test_half_of_the_pairs_are_wrong() -> None:
    rng, text, other = np.random.default_rng(0), document([5] * 10, 0), document([4] * 8, OTHERS)
    pairs = [next_pair(text, other, rng, 32) for _ in range(4000)]
    assert half([pair.label for pair in pairs])
    orders = [order_pair(text, rng, 32) for _ in range(4000)]
    assert half([pair.label for pair in orders if pair])


def test_the_whole_document_occurs() -> None:
    rng, text, other = np.random.default_rng(0), document([3] * 10, 0), document([3] * 6, OTHERS)
    pairs = [next_pair(text, other, rng, 14) for _ in range(1000)]
    assert {token for pair in pairs for token in pair.first + pair.second} == {
        *range(30), *range(OTHERS, OTHERS + 18)
    }  # fmt: skip
    strangers = [pair.second[0] for pair in pairs if pair.label]
    assert set(strangers) == set(range(OTHERS, OTHERS + 18, 3))


def test_long_segments_are_cut_where_it_does_not_show() -> None:
    rng = np.random.default_rng(0)
    pairs = [next_pair(document([50, 50], 0), document([60], OTHERS), rng, 20) for _ in range(20)]
    assert {(len(pair.first), len(pair.second)) for pair in pairs} == {(10, 10)}
    assert {pair.second[0] for pair in pairs} == {50, OTHERS} and {pair.first[-1] for pair in pairs} == {49}
    short = next_pair(document([2, 90], 0), document([90], OTHERS), rng, 20)
    assert (len(short.first), len(short.second)) == (2, 18)
    short = next_pair(document([90, 1], 0), document([3], OTHERS), rng, 20)
    assert len(short.first) + len(short.second) == 20


def test_partners_are_the_others_alike() -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount([partner(3, 8, rng) for _ in range(7000)], minlength=8)
    assert counts[3] == 0
    assert np.abs(np.delete(counts, 3) - 1000).max() < 4 * np.sqrt(1000)
    assert partner(0, 2, rng) == 1
    with pytest.raises(DataError, match="a second document is needed, the dataset has 1"):
        partner(0, 1, rng)


def test_documents_without_tokens() -> None:
    rng = np.random.default_rng(0)
    for text, other in (([], [[1]]), ([[1]], [[], []])):
        with pytest.raises(DataError, match="without tokens"):
            next_pair(text, other, rng, 8)
    assert order_pair([[], [1]], rng, 8) is None


def test_framed() -> None:
    rows = framed(Pair([11, 12], [13], 1), 8, cls=2, sep=3, pad=0)
    assert rows["input_ids"].tolist() == [2, 11, 12, 3, 13, 3, 0, 0]
    assert rows["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert rows["attention_mask"].tolist() == [1] * 6 + [0] * 2
    assert rows["label"] == 1
    with pytest.raises(DataError, match="a pair of 3 tokens does not fit 5"):
        framed(Pair([11, 12], [13], 1), 5, cls=2, sep=3, pad=0)
