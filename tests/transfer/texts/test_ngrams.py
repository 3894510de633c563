"""n-grams: probabilities of loops over counts, that sum to one; and which documents of a bank are counted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.transfer.texts import ngrams
from bigssl.transfer.texts.documents import Sieve, _level
from bigssl.transfer.texts.ngrams import AROUND, BEFORE, NOTHING, REACH, Context, Counted, NGrams, neighbours

KINDS = 6
documents = st.lists(st.lists(st.integers(0, KINDS - 1), max_size=30).map(np.array), min_size=1, max_size=6)
BASE = np.array([0.4, 0.3, 0.1, 0.1, 0.06, 0.04])


def as_ids(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(part, dtype=np.int64) for part in parts]


@given(documents, st.lists(st.integers(NOTHING, KINDS), min_size=1, max_size=9), st.sampled_from([BEFORE, AROUND]))
@settings(max_examples=60, deadline=None)
def test_probabilities_sum_to_one_whatever_stands_around(
    bank: list[np.ndarray], text: list[int], contexts: Sequence[Context]
) -> None:
    """Also beside tokens that the bank does not have, as a mask is one, and at the ends of a text."""
    grams = NGrams.of(as_ids(bank), BASE, contexts)
    around = np.repeat(neighbours(np.array(text)), KINDS, axis=0)
    likely = np.exp(-grams.surprise(around, np.tile(np.arange(KINDS), len(text)))).reshape(len(text), KINDS)
    assert likely.sum(1) == pytest.approx(np.ones(len(text))) and (likely > 0).all()


def by_loops(
    level: Counted, bank: Sequence[np.ndarray], text: np.ndarray, place: int, token: int, below: float
) -> float:
    """p_k by counting windows."""

    def around(ids: np.ndarray, at: int) -> tuple[int, ...]:
        return tuple(int(ids[at + step]) if 0 <= at + step < len(ids) else NOTHING for step in level.context)

    asked = around(text, place)
    followers = [int(ids[at]) for ids in bank for at in range(len(ids)) if around(ids, at) == asked]
    if NOTHING in asked or not followers:
        return below
    average = len(followers) / len(set(followers))
    weight = level.weights[min(ngrams.BUCKETS - 1, int(2 * math.log2(average)))]
    return float((1 - weight) * below + weight * followers.count(token) / len(followers))


@pytest.mark.parametrize("contexts", [BEFORE, AROUND])
def test_numbers_are_those_of_loops(contexts: Sequence[Context]) -> None:
    draw = np.random.default_rng(0)
    bank = [draw.integers(0, KINDS, size) for size in (40, 1, 0, 25, 60)]
    text, grams = draw.integers(0, KINDS, 12), NGrams.of(bank, BASE, contexts)
    found = grams.surprise(neighbours(text), text)
    for place, token in enumerate(text.tolist()):
        likely = float(BASE[token])
        for level in grams.contexts:
            likely = by_loops(level, bank, text, place, token, likely)
        assert found[place] == pytest.approx(-math.log(likely))


def test_weights_make_held_out_tokens_as_likely_as_any_other_weights_would() -> None:
    """What follows is certain after 1 and 2, and nothing is known after 0."""
    draw = np.random.default_rng(1)
    chain = [np.concatenate([[0, 1, 2] if draw.random() < 0.5 else [0, 3] for _ in range(200)]) for _ in range(10)]
    level = NGrams.of(as_ids(chain), BASE, [(-1,)]).contexts[0]
    held = np.concatenate([neighbours(ids) for ids in as_ids(chain[-1:])])
    counted = Counted.of((-1,), as_ids(chain[:-1]))

    def loss(weights: np.ndarray) -> float:
        own, bucket = counted.look(held, held[:, REACH])
        weight = np.where(bucket < 0, 0.0, weights[bucket])
        return float(-np.log((1 - weight) * BASE[held[:, REACH]] + weight * own).sum())

    best = loss(level.weights)
    for bucket in set(counted.look(held, held[:, REACH])[1].tolist()) - {-1}:
        for other in (0.02, 0.3, 0.6, 0.9):
            changed = level.weights.copy()
            changed[bucket] = other
            assert best < loss(changed) + 0.05
    assert level.weights.max() > 0.98


@pytest.mark.parametrize("seed", range(3))
def test_the_documents_that_are_kept_are_those_of_some_levels_however_they_are_dealt(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(0, 50, 300)
    most = 900
    ranks = [Sieve(most), Sieve(most), Sieve(most)]
    one = Sieve(most)
    for number, size in enumerate(sizes.tolist()):
        for sieve in (one, ranks[number % 3]):
            sieve.add(number, np.zeros(size, np.int64))
            assert sum(map(len, sieve.kept.values())) <= most
    everything = sum(sieve.sizes for sieve in ranks)
    level = one.level(everything)
    together = {number: ids for sieve in ranks for number, ids in sieve.above(level).items()}
    assert together.keys() == one.kept.keys() == {n for n in range(len(sizes)) if _level(n) >= level}
    more = int(sizes[[_level(n) >= level - 1 for n in range(300)]].sum())
    assert most / 3 < sum(map(len, one.kept.values())) <= most < more
