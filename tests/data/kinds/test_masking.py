"""Whole words and spans are masked at the papers' rates, and never in part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.kinds.masking import IGNORE, Unit, corrupt, select, span_length

VOCABULARY, MASK = 30_522, 103


def sigma(p: float, n: float) -> float:
    return float(np.sqrt(p * (1 - p) / n))


def text_of(lengths: list[int], special: int = 1) -> np.ndarray:
    """Word numbers of words of `lengths` tokens between `special` special tokens at each end."""
    ends = [-1] * special
    return np.array([*ends, *np.repeat(np.arange(len(lengths)), lengths), *ends])


def long_text(words: int, seed: int = 0) -> np.ndarray:
    return text_of(np.random.default_rng(seed).choice([1, 1, 1, 2, 3], size=words).tolist())


def whole(words: np.ndarray, selection: np.ndarray) -> bool:
    """No word is selected in part."""
    return all(len(set(selection[words == word] >= 0)) == 1 for word in set(words[words >= 0]))


def spans(words: np.ndarray, selection: np.ndarray) -> list[int]:
    """Words of each span."""
    return [len(set(words[selection == first])) for first in sorted(set(selection[selection >= 0]))]


lengths_of_words = st.lists(st.integers(1, 5), min_size=0, max_size=30)


@settings(max_examples=200, deadline=None)
@given(lengths_of_words, st.integers(0, 2), st.integers(0, 2**32), st.floats(0.01, 0.95))
@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_structure(unit: Unit, lengths: list[int], special: int, seed: int, ratio: float) -> None:
    words = text_of(lengths, special)
    selection = select(unit, words, np.random.default_rng(seed), ratio)
    assert (selection.dtype, selection.shape) == (np.int64, words.shape)
    assert (selection[words < 0] == -1).all()
    assert (selection >= 0).any() == bool(lengths)
    chosen = np.flatnonzero(selection >= 0)
    if unit != "span":
        assert (selection[chosen] == chosen).all()
    if unit != "token":
        assert whole(words, selection)
    if unit == "span" and lengths:
        share = ratio * sum(lengths)
        assert max(1, np.floor(share)) <= len(chosen) < max(2, share + 1) + max(lengths)
        assert max(spans(words, selection)) <= 10
        for first in set(selection[chosen]):
            assert np.diff(np.flatnonzero(selection == first)).tolist() == [1] * ((selection == first).sum() - 1)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize("ratio", [0.15, 0.4])
def test_share_of_tokens(unit: Unit, ratio: float) -> None:
    words = long_text(100_000)
    rng = np.random.default_rng(1)
    share = (select(unit, words, rng, ratio) >= 0).sum() / (words >= 0).sum()
    assert abs(share - ratio) < 4 * sigma(ratio, 100_000) * 2  # a word brings its up to three tokens


def test_short_texts_have_their_share_on_average() -> None:
    words, rng, n = text_of([1] * 10), np.random.default_rng(0), 4000
    counts = [(select("span", words, rng, 0.15) >= 0).sum() for _ in range(n)]
    assert set(counts) == {1, 2}
    assert abs(np.mean(counts) - 1.5) < 4 * 0.5 / np.sqrt(n)


def test_each_word_has_the_same_chance() -> None:
    words, rng, n = text_of([1, 3, 2, 1, 4, 1]), np.random.default_rng(0), 6000
    chosen = np.array([select("word", words, rng, 0.3) >= 0 for _ in range(n)])
    rates = [chosen[:, words == word][:, 0].mean() for word in range(6)]
    expected = 0.3 + 0.7**6 / 6  # where none is drawn, one is taken
    assert max(abs(rate - expected) for rate in rates) < 4 * sigma(expected, n)


def test_spans_have_spanberts_lengths() -> None:
    rng, n = np.random.default_rng(0), 40_000
    lengths = np.array([span_length(rng) for _ in range(n)])
    weights = 0.2 * 0.8 ** np.arange(10)
    weights /= weights.sum()
    assert (lengths.min(), lengths.max()) == (1, 10)
    for length, expected in enumerate(weights, 1):
        assert abs((lengths == length).mean() - expected) < 4 * sigma(expected, n)
    assert abs(lengths.mean() - 3.797) < 0.06  # "a mean span length of 3.8"


def test_spans_of_a_long_text_reach_those_lengths() -> None:
    """Only few are cut short by the spans before them."""
    words = text_of([1] * 20_000)
    found = np.array(spans(words, select("span", words, np.random.default_rng(0), 0.05)))
    assert abs(found.mean() - 3.8) < 0.5


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_fates(unit: Unit) -> None:
    """80 % masked, 10 % random, 10 % kept; one fate for all of a span, one for each token of a word."""
    words = long_text(200_000)
    rng = np.random.default_rng(3)
    ids = rng.integers(1000, VOCABULARY, len(words))
    selection = select(unit, words, rng, 0.15)
    masked, labels = corrupt(ids, selection, rng, vocab_size=VOCABULARY, mask_id=MASK)
    chosen = selection >= 0
    np.testing.assert_array_equal(labels, np.where(chosen, ids, IGNORE))
    np.testing.assert_array_equal(masked[~chosen], ids[~chosen])
    kinds = np.select([masked == MASK, masked == ids], [0, 2], 1)  # masked, kept, else random
    firsts = np.unique(selection[chosen])
    swapped = masked[chosen & (kinds == 1)]  # evenly over the whole vocabulary
    assert abs(swapped.mean() / VOCABULARY - 0.5) < 4 / np.sqrt(12 * len(swapped))
    assert swapped.min() < 100 and swapped.max() > VOCABULARY - 100
    for kind, expected in enumerate((0.8, 0.1, 0.1)):
        assert abs((kinds[firsts] == kind).mean() - expected) < 4 * sigma(expected, len(firsts))
    if unit == "span":  # a random token may happen to be the mask or the true one
        assert (kinds[chosen] != kinds[selection[chosen]]).sum() <= 3
    else:
        second = np.flatnonzero(chosen[1:] & chosen[:-1] & (words[1:] == words[:-1])) + 1
        same = (kinds[second] == kinds[second - 1]).mean()
        assert abs(same - (0.64 + 0.01 + 0.01)) < 4 * sigma(0.66, len(second))


def test_a_special_token_inside_ends_a_span() -> None:
    words = np.array([-1, 0, 1, 2, -1, 3, 4, 5, -1])
    for seed in range(200):
        selection = select("span", words, np.random.default_rng(seed), 0.6)
        for first in set(selection[selection >= 0]):
            assert len({place > 4 for place in np.flatnonzero(selection == first)}) == 1


def test_a_selection_is_a_function_of_its_generator() -> None:
    words = long_text(50)
    first, second, third = (select("span", words, np.random.default_rng(s), 0.15).tolist() for s in (1, 1, 2))
    assert first == second != third
