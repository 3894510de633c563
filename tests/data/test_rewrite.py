"""Sentences keep every letter; changed texts differ in what they should, as often as they should."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.rewrite import delete, permute, sentences, substitute, swap

texts = st.text(alphabet="ab .!?…\n\"')。", max_size=60)
word_lists = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=20)
seeds = st.integers(0, 2**32)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "no." Then left.', ['He said "no."', "Then left."]),
        ("It costs 3.50 at example.org... yes", ["It costs 3.50 at example.org...", "yes"]),
        ("first line\n\nsecond line", ["first line", "second line"]),
        ("今日は。元気？はい", ["今日は。", "元気？", "はい"]),
        ("Dr. No", ["Dr.", "No"]),
        (" \n ", []),
        ("", []),
        (["One. Two.", " ", " three "], ["One. Two.", "three"]),
    ],
)
def test_sentences(text: str | list[str], expected: list[str]) -> None:
    assert sentences(text) == expected


@settings(max_examples=300, deadline=None)
@given(texts)
def test_no_letter_is_lost(text: str) -> None:
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(part and part == part.strip() for part in found)


@settings(max_examples=200, deadline=None)
@given(word_lists, seeds)
def test_permutations(parts: list[str], seed: int) -> None:
    shuffled, order = permute(parts, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(parts)))
    assert shuffled == [parts[number] for number in order]


def test_every_order_is_as_likely() -> None:
    rng, n = np.random.default_rng(0), 6000
    counts = Counter(tuple(permute(["x", "y", "z"], rng)[0]) for _ in range(n))
    assert len(counts) == 6
    assert max(abs(count - n / 6) for count in counts.values()) < 4 * np.sqrt(n / 6)


def synonyms(word: str) -> list[str]:
    return {"a": ["A"], "b": ["B1", "B2"]}.get(word, [])


@settings(max_examples=200, deadline=None)
@given(word_lists, seeds, st.floats(0, 1))
def test_substitution(words: list[str], seed: int, share: float) -> None:
    before = list(words)
    changed = substitute(words, np.random.default_rng(seed), share, synonyms)
    assert words == before and len(changed) == len(words)
    replaced = [(old, new) for old, new in zip(words, changed, strict=True) if old != new]
    assert all(new in synonyms(old) for old, new in replaced)
    wanted = max(1, round(share * len(words))) if share > 0 else 0
    assert len(replaced) == min(wanted, sum(bool(synonyms(word)) for word in words))


def test_each_synonym_is_as_likely() -> None:
    rng, n = np.random.default_rng(0), 4000
    found = Counter(word for _ in range(n) for word in substitute(["b", "a"], rng, 0.5, synonyms))
    assert abs(found["A"] / n - 0.5) < 4 * 0.5 / np.sqrt(n)
    assert abs(found["B1"] / n - 0.25) < 4 * np.sqrt(3 / 16 / n)


@settings(max_examples=200, deadline=None)
@given(word_lists, seeds, st.floats(0, 1))
def test_deletion_keeps_the_order_and_one_word(words: list[str], seed: int, share: float) -> None:
    kept = delete(words, np.random.default_rng(seed), share)
    rest = iter(words)
    assert all(word in rest for word in kept)  # a subsequence
    assert bool(kept) == bool(words)


def test_share_of_deleted_words() -> None:
    n = 100_000
    assert abs(len(delete(["w"] * n, np.random.default_rng(0), 0.1)) / n - 0.9) < 4 * np.sqrt(0.09 / n)
    assert delete(["w"] * 5, np.random.default_rng(0), 1.0) == ["w"]


@settings(max_examples=200, deadline=None)
@given(word_lists, seeds, st.floats(0, 1))
def test_swaps_keep_the_words(words: list[str], seed: int, share: float) -> None:
    assert sorted(swap(words, np.random.default_rng(seed), share)) == sorted(words)


def test_swaps_exchange_two_words() -> None:
    words = [str(number) for number in range(10)]
    for seed in range(50):
        changed = swap(words, np.random.default_rng(seed), 0.1)
        assert sum(old != new for old, new in zip(words, changed, strict=True)) == 2
    assert swap(words, np.random.default_rng(0), 0.0) == words
    assert swap(["alone"], np.random.default_rng(0), 1.0) == ["alone"]
