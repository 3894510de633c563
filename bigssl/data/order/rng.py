"""Randomness as a function of where a sample stands, never of who reads it or what was read before.

Philox is counter based: a key of 128 bits gives an independent stream, so hashing (seed, epoch, key) into it needs no
state that a worker, a rank or a resumed run would have to carry (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3").
"""

from __future__ import annotations

import hashlib
from typing import cast

import numpy as np
from numpy.random.bit_generator import ISeedSequence

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / φ, odd


class _Key(ISeedSequence):
    """Hands a Philox its key. Given as `key=`, NumPy would first ask the system for entropy that it then ignores,
    which takes longer than to read a small sample."""

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> np.ndarray:
        return np.frombuffer(self._digest, dtype="<u8")


def _philox(*parts: object) -> np.random.Philox:
    text = "\x1f".join(map(str, parts))
    key = _Key(hashlib.blake2b(text.encode(), digest_size=16).digest())
    return np.random.Philox(cast(np.random.SeedSequence, key))  # the annotation forgets the interface


def sample_rng(seed: int, epoch: int, key: str, salt: str = "") -> np.random.Generator:
    """Generator of one sample in one epoch; `salt` separates uses (the source's name, the part of a joint
    objective)."""
    return np.random.Generator(_philox("sample", seed, epoch, salt, key))


def permutation(size: int, *parts: object) -> np.ndarray:
    """int64 [size]: a permutation keyed by `parts`.

    Sorts raw Philox words instead of calling `Generator.permutation`, whose algorithm NumPy may change between
    versions: a run must find the same order after an upgrade.
    """
    return np.argsort(_philox("permutation", *parts).random_raw(size), kind="stable")


def seeds(positions: np.ndarray, *parts: object) -> np.ndarray:
    """int64 [n] >= 0 for int64 [n] positions, keyed by `parts`: the upper bits of their `words`."""
    return (words(int(_philox("seeds", *parts).random_raw()), positions) >> np.uint64(1)).astype(np.int64)


def offset(size: int, *parts: object) -> int:
    """A number in [0, size) keyed by `parts`."""
    return int(_philox("offset", *parts).random_raw() % size)


def key(*parts: object) -> int:
    """A key for `words`, of 64 bits."""
    return int(_philox("key", *parts).random_raw())


def words(key: int, numbers: np.ndarray) -> np.ndarray:
    """uint64, as many as the int64 `numbers` (from 0): the words with these numbers of the stream `key`.

    SplitMix64 (Steele et al. 2014), whose state is a counter: any of millions of words costs a few operations of an
    array, where a Philox for each would cost a microsecond.
    """
    mixed = np.uint64(key) + numbers.astype(np.uint64) * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
