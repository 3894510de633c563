"""Near duplicates: texts that share most of their five-word sequences, found by MinHash and locality-sensitive hashing
(Broder 1997; as Lee et al. 2022, https://arxiv.org/abs/2107.06499). The package `datasketch` does both."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Iterator

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.kinds.words import words_in_text

HASHES = 128  # of a signature: an estimate of .8 is off by .035
WORDS = 5  # of a sequence
_SCHEME = "affine32"  # datasketch's name for hashes of 32 bits
_AT_ONCE = 4096  # sequences, for each of which HASHES numbers are held
_MIX = np.uint64(0x9E3779B97F4A7C15)
INSTALL = "pip install 'bigssl[text]'"


def can_find_near() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("datasketch") is not None


def refuse_without_near() -> None:
    """Raises DataError where it is not."""
    if not can_find_near():
        raise DataError(f"rule near-duplicates needs the package datasketch: {INSTALL}")


def signature(text: str) -> np.ndarray | None:
    """uint32 [HASHES]; None for a text without words, which is near to none. Case and punctuation do not count."""
    from datasketch import MinHash

    words = np.array([zlib.crc32(word.encode()) for word in words_in_text(text.casefold())], dtype=np.uint64)
    if not len(words):
        return None
    sequences = np.lib.stride_tricks.sliding_window_view(words, min(WORDS, len(words)))
    mixed = np.zeros(len(sequences), dtype=np.uint64)
    for column in sequences.T:
        mixed = (mixed ^ column) * _MIX  # modulo 2^64
    values = np.unique(mixed >> np.uint64(32))
    sketch = MinHash(HASHES, hashfunc=int, scheme=_SCHEME)
    for begin in range(0, len(values), _AT_ONCE):
        sketch.update_batch(values[begin : begin + _AT_ONCE])
    return sketch.hashvalues.astype(np.uint32)


def near_firsts(signatures: dict[int, np.ndarray], least: float) -> Iterator[tuple[int, int]]:
    """(number, number of an earlier one that stays) of each text that shares about `least` of its sequences with it
    (Jaccard, as the signatures tell). signatures: by number; they are taken in its order."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=least, num_perm=HASHES)
    for number, values in sorted(signatures.items()):
        sketch = MinHash(HASHES, hashvalues=values, scheme=_SCHEME)
        candidates = sorted(index.query(sketch))
        near = (other for other in candidates if np.mean(signatures[other] == values) >= least)
        first = next(near, None)
        if first is None:
            index.insert(number, sketch)
        else:
            yield number, first
