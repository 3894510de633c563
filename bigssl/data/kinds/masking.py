"""Which tokens are to be predicted, and what stands in their place: pure functions of (tokens, generator).

A selection is int64 [T]: -1 at tokens that are left alone, elsewhere the place of the first token of the unit that
shares its fate: the token itself, or the whole span.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

IGNORE = -100  # the label of a position that has no loss
Unit = Literal["token", "word", "span"]
SPAN_P, LONGEST_SPAN = 0.2, 10
MASKED, SWAPPED = 0.8, 0.1  # shares of what is predicted that a mask and another token stand in for (BERT)


def share_at(start: float, end: float | None, done: float) -> float:
    """A share that goes from `start` towards `end` along a line while a run is done (dynamic masking rates, Ankner et
    al. 2024, https://arxiv.org/abs/2305.15096); where that is None, it stays.

    done: share of the run, as of `Sample`.
    """
    return start if end is None else start + (end - start) * done


def select(unit: Unit, words: np.ndarray, rng: np.random.Generator, ratio: float) -> np.ndarray:
    """A selection of about `ratio` of the tokens, one unit at least where there is any, by token, word or span.

    words: int64 [T], the number of each token's word, the same number for neighbours only; -1 at special tokens and
    padding, which are never selected.
    """
    if unit == "token":
        return select_tokens(words >= 0, rng, ratio)
    return (select_words if unit == "word" else select_spans)(words, rng, ratio)


def select_tokens(free: np.ndarray, rng: np.random.Generator, ratio: float) -> np.ndarray:
    """Each token where `free` (bool, any shape) with probability `ratio` (Devlin et al. 2019)."""
    selected = free & (rng.random(free.shape) < ratio)
    places = np.flatnonzero(free)
    if places.size and not selected.any():
        selected.flat[places[rng.integers(places.size)]] = True
    return np.where(selected, np.arange(free.size).reshape(free.shape), -1)


def select_words(words: np.ndarray, rng: np.random.Generator, ratio: float) -> np.ndarray:
    """Each word, with all its tokens, with probability `ratio` (whole word masking, google-research/bert, 2019). The
    tokens of a word have fates of their own, as there."""
    begin, end = _extents(words)
    selected = select_tokens(np.ones(len(begin), bool), rng, ratio) >= 0
    inside = np.repeat(selected, end - begin)
    places = np.flatnonzero(words >= 0)
    selection = np.full(len(words), -1)
    selection[places[inside]] = places[inside]
    return selection


def select_spans(words: np.ndarray, rng: np.random.Generator, ratio: float) -> np.ndarray:
    """Spans of whole words until `ratio` of the tokens is reached (SpanBERT, Joshi et al. 2020, section 3.1).

    A span begins at any word that is not selected yet and has `span_length` words; it ends earlier where the text does,
    before a selected word, or with the word that reaches the number of tokens: ratio × free tokens, rounded up or down
    at random, at least 1. A span has one fate.
    """
    begin, end = _extents(words)
    budget = max(1, int(ratio * (words >= 0).sum() + rng.random())) if len(begin) else 0
    selection, taken, count = np.full(len(words), -1), np.zeros(len(begin), bool), 0
    while count < budget:
        first = word = int(rng.integers(len(begin)))
        last = word + span_length(rng)
        while word < min(last, len(begin)) and not taken[word] and count < budget:
            if word > first and begin[word] != end[word - 1]:
                break  # a special token stands between
            selection[begin[word] : end[word]] = begin[first]
            taken[word] = True
            count += int(end[word] - begin[word])
            word += 1
    return selection


def span_length(rng: np.random.Generator) -> int:
    """Words of a span: geometric with p = .2, those above 10 drawn again, 3.8 on average."""
    while True:
        length = int(rng.geometric(SPAN_P))
        if length <= LONGEST_SPAN:
            return length


def _extents(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each word: the place of its first token, and the one after its last."""
    padded = np.concatenate([[-1], words, [-1]])
    changes = padded[1:] != padded[:-1]  # [T + 1]: between a token and the one before it
    inside = words >= 0
    return np.flatnonzero(changes[:-1] & inside), np.flatnonzero(changes[1:] & inside) + 1


def corrupt(
    input_ids: np.ndarray, selection: np.ndarray, rng: np.random.Generator, *, vocab_size: int, mask_id: int,
    shares: tuple[float, float] = (MASKED, SWAPPED), pool: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(masked ids, labels), int64, shape of `input_ids`: BERT's corruption of what is selected.

    80 % of the units become `mask_id`, 10 % random entries of the vocabulary, 10 % stay. Labels are the true ids at
    selected tokens, -100 elsewhere.

    Args:
        shares: of the units that become `mask_id`, and others, in place of 80 and 10 %.
        pool: int64 [N > 0], tokens out of which others are drawn, in place of the vocabulary, each place alike.
    """
    selected = selection >= 0
    fate = rng.random(input_ids.shape).take(selection)  # -1 takes any, and is not selected
    masked = np.where(selected & (fate < shares[0]), mask_id, input_ids)
    swapped = selected & (fate >= shares[0]) & (fate < sum(shares))
    drawn = rng.integers(vocab_size if pool is None else len(pool), size=int(swapped.sum()))
    masked[swapped] = drawn if pool is None else pool[drawn]
    return masked, np.where(selected, input_ids, IGNORE)
