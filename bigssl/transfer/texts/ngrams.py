"""Interpolated n-grams: what a token's neighbours tell of it, counted in a bank. The line that a language model has to
beat, where token frequencies do not look at the text at all.

A token's probability starts from its frequency and is mixed, one context after the other, with the relative frequency
of the token in that context (Jelinek and Mercer 1980):

    p_k(w) = (1 - λ) p_(k-1)(w) + λ c(context_k, w) / c(context_k)        λ = 0 where the context was never seen

λ depends on how often each token that follows the context did so on average (Chen and Goodman 1996, section 3), and is
fitted by expectation maximisation on documents that are not counted meanwhile. Each p_k sums to 1 over the vocabulary.
A context is any choice of neighbours: those before a token for causal models, those on both sides for masked ones.

Contexts are known by 64-bit hashes, so that memory is bounded by the tokens counted: 28 bytes at most for each token
and context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Context = tuple[int, ...]
BEFORE: tuple[Context, ...] = ((-1,), (-2, -1), (-3, -2, -1))
AROUND: tuple[Context, ...] = ((1,), (-1,), (1, 2), (-2, -1), (-1, 1), (-2, -1, 1), (-1, 1, 2))
REACH = 3  # tokens on each side that a context may look at
NOTHING = -1  # beyond the ends of a document
BUCKETS, STEPS, HELD_OUT = 24, 25, 10  # weights of a context, steps of their fit, documents for one that is held out
_ONE, _TWO = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def neighbours(ids: np.ndarray) -> np.ndarray:
    """int64 [T, 2 · REACH + 1] of the tokens int64 [T] of a text: each in the middle of what surrounds it, `NOTHING`
    beyond the ends."""
    padded = np.pad(ids, (REACH, REACH + 1), constant_values=NOTHING)
    return sliding_window_view(padded, 2 * REACH + 1)[: len(ids)]


@dataclass(frozen=True)
class Counted:
    """How often tokens stand in one context.

    Attributes:
        seen: uint64 [C], hashes of the contexts, ascending; total, kinds: int32 [C], tokens and different tokens there.
        pairs: uint64 [P], hashes of contexts with their token, ascending; counts: int32 [P].
        weights: float64 [BUCKETS], λ by `_buckets`.
    """

    context: Context
    seen: np.ndarray
    total: np.ndarray
    kinds: np.ndarray
    pairs: np.ndarray
    counts: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, context: Context, documents: Sequence[np.ndarray]) -> Counted:
        """From documents, int64 [T] each."""
        both = [_hashed(context, neighbours(ids)) for ids in documents]
        codes = np.concatenate([np.zeros(0, np.uint64), *(codes[whole] for codes, whole, _ in both)])
        tokens = np.concatenate([np.zeros(0, np.int64), *(own[whole] for _, whole, own in both)])
        del both
        pairs, first, counts = np.unique(_with(codes, tokens), return_index=True, return_counts=True)
        seen, total = np.unique(codes, return_counts=True)
        kinds = np.bincount(np.searchsorted(seen, codes[first]), minlength=len(seen))
        narrow = [each.astype(np.int32) for each in (total, kinds, counts)]
        return cls(context, seen, narrow[0], narrow[1], pairs, narrow[2], np.full(BUCKETS, 0.5))

    def look(self, around: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(relative frequency float64 [M] of tokens int64 [M] in their contexts, bucket int64 [M] of each context, -1
        where it was never seen). around: [M, 2 · REACH + 1], see `neighbours`; the middle is not looked at."""
        codes, whole, _ = _hashed(self.context, around)
        places, known = _found(self.seen, codes)
        known &= whole
        at, there = _found(self.pairs, _with(codes, tokens))
        counts = np.where(there & known, self.counts[at] if len(self.counts) else 0, 0)
        total, kinds = (each[places] if len(each) else np.ones(len(codes)) for each in (self.total, self.kinds))
        return counts / total, np.where(known, _buckets(total / kinds), -1)

    def mixed(self, below: np.ndarray, around: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """p_k float64 [M] from p_(k-1), `below`."""
        own, bucket = self.look(around, tokens)
        weight = np.where(bucket < 0, 0.0, self.weights[bucket])
        return (1 - weight) * below + weight * own

    def fitted(self, below: np.ndarray, around: np.ndarray, tokens: np.ndarray) -> Counted:
        """The same with the weights under which `tokens`, which are not among those counted, are likeliest. One token
        and one other are added to each bucket, so that none is fitted to a few."""
        own, bucket = self.look(around, tokens)
        known = bucket >= 0
        own, below, bucket = own[known], below[known], bucket[known]
        weights, size = self.weights, np.bincount(bucket, minlength=BUCKETS)
        for _ in range(STEPS):
            mine = weights[bucket] * own
            share = mine / (mine + (1 - weights[bucket]) * below)
            weights = (np.bincount(bucket, share, minlength=BUCKETS) + 1) / (size + 2)
        return replace(self, weights=weights)


@dataclass(frozen=True)
class NGrams:
    """Probabilities of tokens by their neighbours.

    Attributes:
        base: float64 [V], of each token without a context; sums to 1.
        contexts: in the order in which they are mixed in.
        tokens: how many were counted.
    """

    base: np.ndarray
    contexts: Sequence[Counted]
    tokens: int

    @classmethod
    def of(cls, documents: Sequence[np.ndarray], base: np.ndarray, contexts: Sequence[Context]) -> NGrams:
        """From the tokens int64 [T] of documents in an order of no meaning: weights are fitted on the last tenth of
        them (of a single one, on its last tenth) with the counts of the others, then all are counted."""
        counted, held = _divided(documents)
        around = np.concatenate([np.zeros((0, 2 * REACH + 1), np.int64), *map(neighbours, held)])
        tokens, fitted = around[:, REACH], []
        likely = base[tokens]
        for context in contexts:
            level = Counted.of(context, counted).fitted(likely, around, tokens)
            likely = level.mixed(likely, around, tokens)
            fitted.append(level.weights)
        everything = [replace(Counted.of(context, documents), weights=weights)
                      for context, weights in zip(contexts, fitted, strict=True)]  # fmt: skip
        return cls(base, everything, sum(map(len, documents)))

    def surprise(self, around: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """-ln of the probability of tokens int64 [M] among `around`, see `neighbours`; float64 [M], in nats."""
        likely = self.base[tokens]
        for level in self.contexts:
            likely = level.mixed(likely, around, tokens)
        return -np.log(likely)


def _divided(documents: Sequence[np.ndarray]) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    """(those that are counted, those that are held out)"""
    if len(documents) == 1:
        cut = len(documents[0]) - len(documents[0]) // HELD_OUT
        return [documents[0][:cut]], [documents[0][cut:]]
    cut = len(documents) - -(-len(documents) // HELD_OUT)
    return documents[:cut], documents[cut:]


def _hashed(context: Context, around: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hash uint64 [M] of each context, whether it lies inside its text, the tokens in the middle)"""
    columns = [around[:, REACH + place] for place in context]
    codes, whole = np.zeros(len(around), np.uint64), np.ones(len(around), bool)
    for column in columns:
        codes, whole = _with(codes, column), whole & (column != NOTHING)
    return codes, whole, around[:, REACH]


def _with(codes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Hashes of what is known by `codes` and goes on with `tokens` (as splitmix64 does, Steele et al. 2014)."""
    mixed = (codes << np.uint64(1)) ^ (codes >> np.uint64(63)) ^ ((tokens + 1).astype(np.uint64) * _ONE)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _ONE
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _TWO
    return mixed ^ (mixed >> np.uint64(31))


def _found(among: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place of each code in `among`, ascending, whether it is there)"""
    if not len(among):
        return np.zeros(len(codes), np.int64), np.zeros(len(codes), bool)
    places = np.minimum(np.searchsorted(among, codes), len(among) - 1)
    return places, among[places] == codes


def _buckets(average: np.ndarray) -> np.ndarray:
    """Half octaves of the average count, >= 1."""
    return np.minimum(2 * np.log2(average), BUCKETS - 1).astype(np.int64)
