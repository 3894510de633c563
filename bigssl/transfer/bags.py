"""Raw texts as vectors, the baseline that has learnt nothing: TF-IDF of the n-grams of their characters and of their
tokens.

Neither needs words: in a script without spaces a word is a sentence, which no other text shares. Measured by 20 nearest
neighbours, on the demo's captions in English and in Chinese (categories) and on passages of its addresses (eras): words
find 79.6, 19.9 and 37.8 %, one to four characters 80.9, 64.0 and 37.6 %, one and two tokens 74.1, 64.3 and 40.3 %.
Neither is always ahead, so both stand in the scorecard.

An n-gram is known by a hash into `WIDTH` columns: there is no vocabulary that grows with the texts. Vectors are sparse,
made of some texts at a time and not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bigssl.transfer.team import Team

WIDTH = 1 << 20
CHARACTERS = 1 << 16  # of a text at most; no network sees as many tokens
TOGETHER = 1 << 18  # characters that are counted at once: some 32 MiB
ROWS, VALUES = 1024, 1 << 22  # texts, and values that are not 0, of a piece at most: 32 MiB
PRIME, SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)


@dataclass(frozen=True)
class Grams:
    """n-grams of texts.

    Attributes:
        name: of the baseline, in words.
        symbols: int64 [T] of each text: what its n-grams are made of.
        longest: symbols of an n-gram at most.
    """

    name: str
    symbols: Callable[[Sequence[str]], list[np.ndarray]]
    longest: int

    def counts(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """float32 [N, WIDTH]: how often each n-gram occurs in each text."""
        found = self.symbols([text[:CHARACTERS] for text in texts])
        sizes = np.array([len(each) for each in found], dtype=np.int64)
        symbols = np.concatenate([np.zeros(0, np.int64), *found]).astype(np.uint64)
        rows = np.repeat(np.arange(len(found), dtype=np.uint64), sizes)
        left = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(symbols))  # symbols from here to the text's end
        codes, places = np.zeros(len(symbols), np.uint64), [np.zeros(0, np.uint64)]
        for length in range(1, self.longest + 1):
            last = np.concatenate([symbols[length - 1 :], np.zeros(min(length - 1, len(symbols)), np.uint64)])
            codes = (codes ^ (codes >> SHIFT)) * PRIME + last + np.uint64(1)
            whole = left >= length
            columns = (codes[whole] * PRIME >> SHIFT) % np.uint64(WIDTH)
            places.append(rows[whole] * np.uint64(WIDTH) + columns)
        different, count = np.unique(np.concatenate(places), return_counts=True)
        begins = np.searchsorted(different, np.arange(len(found) + 1, dtype=np.uint64) * np.uint64(WIDTH))
        columns = (different % np.uint64(WIDTH)).astype(np.int32)
        return sparse.csr_matrix((count.astype(np.float32), columns, begins), shape=(len(found), WIDTH))


def character_grams() -> Grams:
    """Of one to four characters, in lower case."""
    return Grams("TF-IDF of characters", lambda texts: [_points(text) for text in texts], 4)


def _points(text: str) -> np.ndarray:
    return np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.int64)


def token_grams(tokenizer: PreTrainedTokenizerFast) -> Grams:
    """Of one or two tokens; one that is unknown tells nothing."""

    def symbols(texts: Sequence[str]) -> list[np.ndarray]:
        found = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids = [np.array(each, dtype=np.int64) for each in found["input_ids"]] if texts else []
        return [each[each != tokenizer.unk_token_id] if tokenizer.unk_token_id is not None else each for each in ids]

    return Grams("TF-IDF of tokens", symbols, 2)


@dataclass(frozen=True)
class SparseRows:
    """Some texts: their vectors, of unit length before the mean is taken from them.

    Attributes:
        values: float32 [m, WIDTH].
        along, square: x · mean of each row x, float64 [m], and mean · mean.
    """

    values: sparse.csr_matrix
    along: np.ndarray
    square: float

    @property
    def blank(self) -> Tensor:
        """bool [m]: texts with no n-gram that has a weight."""
        return torch.from_numpy(np.diff(self.values.indptr) == 0)

    def cosines(self, other: SparseRows) -> Tensor:
        """float32 [m, n], of what is left of the rows without the mean; 0 where nothing is, or nothing was."""
        products = self.products(other).numpy() - self.along[:, None] - other.along + self.square
        return torch.from_numpy((products * self._scale[:, None] * other._scale).astype(np.float32))

    def products(self, other: SparseRows) -> Tensor:
        """float32 [m, n], with the mean in them."""
        return torch.from_numpy((self.values @ other.values.T).toarray())

    @property
    def _scale(self) -> np.ndarray:
        squares = 1 - 2 * self.along + self.square
        kept = ~self.blank.numpy() & (squares > 1e-6)
        return np.where(kept, np.maximum(squares, 1e-6) ** -0.5, 0.0)

    def __getitem__(self, rows: list[int]) -> SparseRows:
        return SparseRows(self.values[rows], self.along[rows], self.square)


@dataclass(frozen=True)
class TfIdf:
    """What the texts of a bank say of n-grams.

    Attributes:
        weights: float32 [WIDTH]: 1 + ln((1 + N) / (1 + texts with it)); 0 of those in none.
        mean: float64 [WIDTH], of the unit vectors of the bank.
    """

    grams: Grams
    weights: np.ndarray
    mean: np.ndarray

    @classmethod
    def of(cls, grams: Grams, texts: Sequence[str], team: Team) -> TfIdf:
        """From the texts of a bank, which every rank has, each working on its share. A collective."""
        share = team.share(len(texts))
        mine = [part for _, part in _pieces(texts, share)]
        seen = team.total(team.each(lambda: _sum(grams.counts(part).sign() for part in mine))).numpy()
        weights = np.where(seen > 0, 1 + np.log((1 + len(texts)) / (1 + seen)), 0).astype(np.float32)
        bare = cls(grams, weights, np.zeros(WIDTH))
        sums = team.total(team.each(lambda: _sum(bare.vectors(part) for part in mine)))
        return cls(grams, weights, sums.numpy() / max(1, len(texts)))

    @property
    def empty(self) -> bool:
        """Whether the bank holds no n-gram."""
        return not self.weights.any()

    def vectors(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """float32 [N, WIDTH]: (1 + ln(count)) × weight, rows at unit length."""
        found = self.grams.counts(texts)
        found.data = (1 + np.log(found.data)) * self.weights[found.indices]
        found.eliminate_zeros()
        rows = np.repeat(np.arange(len(texts)), np.diff(found.indptr))
        squares = np.bincount(rows, found.data.astype(np.float64) ** 2, minlength=len(texts))
        found.data = (found.data / np.sqrt(squares)[rows]).astype(np.float32)
        return found

    def rows(self, texts: Sequence[str]) -> SparseRows:
        vectors = self.vectors(texts)
        return SparseRows(vectors, vectors.astype(np.float64) @ self.mean, float(self.mean @ self.mean))


def _sum(parts: Iterable[sparse.csr_matrix]) -> Tensor:
    """float64 [WIDTH]: the sum of all rows."""
    total = np.zeros(WIDTH)
    for part in parts:
        total += np.bincount(part.indices, part.data, minlength=WIDTH)
    return torch.from_numpy(total)


@dataclass(frozen=True)
class Bags:
    """Texts whose vectors are made when they are asked for."""

    texts: Sequence[str]
    weights: TfIdf

    def __len__(self) -> int:
        return len(self.texts)

    def pieces(self, rows: range | None = None) -> Iterator[tuple[range, SparseRows]]:
        rows = range(len(self.texts)) if rows is None else rows
        parts: list[SparseRows] = []
        begin = rows.start
        for numbers, texts in _pieces(self.texts, rows):
            part = self.weights.rows(texts)
            if parts and (numbers.stop - begin > ROWS or sum(each.values.nnz for each in [*parts, part]) > VALUES):
                yield range(begin, numbers.start), _joined(parts)
                parts, begin = [], numbers.start
            parts.append(part)
        if parts:
            yield range(begin, rows.stop), _joined(parts)


def _joined(parts: Sequence[SparseRows]) -> SparseRows:
    values = sparse.vstack([part.values for part in parts], format="csr")
    return SparseRows(values, np.concatenate([part.along for part in parts]), parts[0].square)


def _pieces(texts: Sequence[str], rows: range) -> Iterator[tuple[range, Sequence[str]]]:
    begin = rows.start
    while begin < rows.stop:
        end, size = begin + 1, len(texts[begin])
        while end < min(rows.stop, begin + ROWS) and size + len(texts[end]) <= TOGETHER:
            size, end = size + len(texts[end]), end + 1
        yield range(begin, end), texts[begin:end]
        begin = end
