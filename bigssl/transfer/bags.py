"""Raw texts as vectors, the baseline that has learnt nothing: TF-IDF of the n-grams of their characters and of their
tokens.

Neither needs words: in a script without spaces a word is a sentence, which no other text shares. Measured by 20 nearest
neighbours, on the demo's captions in English and in Chinese (categories) and on passages of its addresses (eras): words
find 79.6, 19.9 and 37.8 %, one to four characters 80.9, 64.0 and 37.6 %, one and two tokens 74.1, 64.3 and 40.3 %.
Neither is always ahead, so both stand in the scorecard.

An n-gram is known by a hash into `WIDTH` columns: there is no vocabulary that grows with the texts. n-grams of a text
are counted once, by one rank, some texts at a time. Counts, and vectors made of them, are kept where features are,
eight bytes for each value that is not 0, and read in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bigssl.transfer.matrix import Matrix, Store, joined
from bigssl.transfer.team import Team

WIDTH = 1 << 20
CHARACTERS = 1 << 16  # of a text at most; no network sees as many tokens
TOGETHER = 1 << 18  # characters that are counted at once: some 32 MiB
ROWS, VALUES = 1024, 1 << 22  # texts, and values that are not 0, of a piece at most: 32 MiB, twice while it is read
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


class StoredRows:
    """Sparse rows, kept where a `Store` puts them: n-grams of one text each.

    Attributes:
        matrix: float32 [values, 2]: column and value of each that is not 0. Columns below 2^24 are exact.
        starts: int64 [N + 1]: where each row begins in it, and the end.
    """

    def __init__(self, matrix: Matrix, starts: np.ndarray) -> None:
        self.matrix, self.starts = matrix, starts

    @classmethod
    def of(cls, parts: Iterable[sparse.csr_matrix], team: Team, store: Store) -> StoredRows:
        """Rows [n, WIDTH] of all ranks, one below the other. A collective."""
        sizes: list[np.ndarray] = []

        def batches() -> Iterator[dict[str, Tensor]]:
            for part in parts:
                sizes.append(np.diff(part.indptr).astype(np.int64))
                yield {"rows": torch.from_numpy(np.stack([part.indices.astype(np.float32), part.data], axis=1))}

        found = team.gather(lambda: (store.store(batches()), sizes))
        every = [np.zeros(1, np.int64), *(size for _, mine in found for size in mine)]
        return cls(joined([part for part, _ in found]).get("rows", Matrix([])), np.cumsum(np.concatenate(every)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def read(self, rows: range) -> sparse.csr_matrix:
        """float32 [len(rows), WIDTH]"""
        stretches = [rows] if rows.step == 1 else [range(row, row + 1) for row in rows]
        places = [(int(self.starts[each.start]), int(self.starts[each.stop])) for each in stretches]
        found = torch.cat([torch.zeros(0, 2), *(self.matrix.read(*each) for each in places if each[0] < each[1])])
        chosen = np.arange(rows.start, rows.stop, rows.step)
        begins = np.concatenate([[0], np.cumsum(self.starts[chosen + 1] - self.starts[chosen])])
        columns, values = found[:, 0].to(torch.int32).numpy(), found[:, 1].contiguous().numpy()
        return sparse.csr_matrix((values, columns, begins), shape=(len(rows), WIDTH))

    def pieces(self, rows: range) -> Iterator[tuple[range, sparse.csr_matrix]]:
        """(row numbers, their values): ROWS and VALUES at most, of a range of any step, in order."""
        begin = 0
        while begin < len(rows):
            end, size = begin + 1, self._size(rows[begin])
            while end < min(len(rows), begin + ROWS) and size + self._size(rows[end]) <= VALUES:
                size, end = size + self._size(rows[end]), end + 1
            yield rows[begin:end], self.read(rows[begin:end])
            begin = end

    def _size(self, row: int) -> int:
        return int(self.starts[row + 1] - self.starts[row])


def counted(grams: Grams, texts: Sequence[str], team: Team, store: Store) -> StoredRows:
    """How often each n-gram occurs in each of the texts, which every rank has, each counting its share. A
    collective."""
    return StoredRows.of(map(grams.counts, _pieces(texts, team.share(len(texts)))), team, store)


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

    def beside(self, other: SparseRows) -> Tensor:
        """float32 [m]: the same, of each row with the one of its place alone."""
        products = np.asarray(self.values.multiply(other.values).sum(1)).ravel() - self.along - other.along
        return torch.from_numpy(((products + self.square) * self._scale * other._scale).astype(np.float32))

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

    def strips(self, rows: int = 0) -> Iterator[SparseRows]:
        yield self


@dataclass(frozen=True)
class TfIdf:
    """What the texts of a bank say of n-grams.

    Attributes:
        weights: float32 [WIDTH]: 1 + ln((1 + N) / (1 + texts with it)); 0 of those in none.
        mean: float64 [WIDTH], of the unit vectors of the bank.
    """

    weights: np.ndarray
    mean: np.ndarray

    @classmethod
    def of(cls, counts: StoredRows, team: Team) -> TfIdf:
        """From the n-grams of a bank, each rank working on its share. A collective."""
        mine = team.share(len(counts))
        seen = team.total(team.each(lambda: _sum(part.sign() for _, part in counts.pieces(mine)))).numpy()
        weights = np.where(seen > 0, 1 + np.log((1 + len(counts)) / (1 + seen)), 0).astype(np.float32)
        bare = cls(weights, np.zeros(WIDTH))
        sums = team.total(team.each(lambda: _sum(bare.vectors(counts, mine))))
        return cls(weights, sums.numpy() / max(1, len(counts)))

    @property
    def empty(self) -> bool:
        """Whether the bank holds no n-gram."""
        return not self.weights.any()

    def vectors(self, counts: StoredRows, rows: range) -> Iterator[sparse.csr_matrix]:
        """float32 [n, WIDTH], of some rows at a time: (1 + ln(count)) × weight, rows at unit length."""
        for _, found in counts.pieces(rows):
            found.data = (1 + np.log(found.data)) * self.weights[found.indices]
            found.eliminate_zeros()
            lengths = np.sqrt(np.add.reduceat(np.append(found.data, 0) ** 2, found.indptr[:-1], dtype=np.float64))
            found.data /= np.repeat(lengths, np.diff(found.indptr)).astype(np.float32)
            yield found


def _sum(parts: Iterable[sparse.csr_matrix]) -> Tensor:
    """float64 [WIDTH]: the sum of all rows."""
    total = np.zeros(WIDTH)
    for part in parts:
        total += np.bincount(part.indices, part.data, minlength=WIDTH)
    return torch.from_numpy(total)


@dataclass(frozen=True)
class Bags:
    """Vectors of texts.

    Attributes:
        rows: of unit length, before the mean is taken from them.
        along: x · mean of each row x, float64 [N].
    """

    rows: StoredRows
    along: np.ndarray
    weights: TfIdf

    @classmethod
    def of(cls, counts: StoredRows, weights: TfIdf, team: Team, store: Store) -> Bags:
        """Of the texts whose n-grams are counted. A collective."""
        along = [np.zeros(0)]

        def parts() -> Iterator[sparse.csr_matrix]:
            for part in weights.vectors(counts, team.share(len(counts))):
                along.append(part.astype(np.float64) @ weights.mean)
                yield part

        rows = StoredRows.of(parts(), team, store)
        return cls(rows, np.concatenate([each for mine in team.gather(lambda: along) for each in mine]), weights)

    def __len__(self) -> int:
        return len(self.rows)

    def pieces(self, rows: range | None = None) -> Iterator[tuple[range, SparseRows]]:
        """As `Vectors` has it; `rows` may have any step."""
        for numbers, part in self.rows.pieces(range(len(self)) if rows is None else rows):
            yield numbers, self._known(numbers, part)

    def beside(self, one: range, other: range) -> Tensor:
        """float32 [N]: cosines of each of N rows with another."""
        found = [torch.zeros(0)]
        for begin in range(0, len(one), ROWS):
            parts = [rows[begin : begin + ROWS] for rows in (one, other)]
            first, second = (self._known(rows, self.rows.read(rows)) for rows in parts)
            found.append(first.beside(second))
        return torch.cat(found)

    def _known(self, numbers: range, part: sparse.csr_matrix) -> SparseRows:
        square = float(self.weights.mean @ self.weights.mean)
        return SparseRows(part, self.along[numbers.start : numbers.stop : numbers.step], square)


def _pieces(texts: Sequence[str], rows: range) -> Iterator[Sequence[str]]:
    begin = rows.start
    while begin < rows.stop:
        end, size = begin + 1, len(texts[begin])
        while end < min(rows.stop, begin + ROWS) and size + len(texts[end]) <= TOGETHER:
            size, end = size + len(texts[end]), end + 1
        yield texts[begin:end]
        begin = end
