"""kNN against the slow truth: loops, one neighbour at a time."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bigssl.transfer import matrix
from bigssl.transfer.cosines import Centred
from bigssl.transfer.knn import TEMPERATURE, encode_labels, lost_to_majority, nearest_rows, stored_knn
from bigssl.transfer.matrix import HeldPart, Matrix


def knn_predict(bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, *, k: int = 20,
                temperature: float = TEMPERATURE) -> torch.Tensor:  # fmt: skip
    """`stored_knn` of matrices in memory."""
    held, asked = (Centred(Matrix([HeldPart(rows)]), torch.zeros(bank.shape[1])) for rows in (bank, queries))
    return stored_knn(held, labels, asked, range(len(queries)), k=k, temperature=temperature)


def slow_knn(bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, k: int, temperature: float) -> list[int]:
    found = []
    for query in queries.double():
        cosines = [(float(query @ row / (query.norm() * row.norm())), int(label))
                   for row, label in zip(bank.double(), labels, strict=True)]
        votes: dict[int, float] = {}
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(cosine / temperature)
        found.append(max(sorted(votes), key=lambda label: votes[label]))
    return found


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (7, 0.07), (7, 10.0), (83, 0.2)])
@pytest.mark.parametrize("rows", [4096, 10])
def test_equals_loops(k: int, temperature: float, rows: int, monkeypatch: pytest.MonkeyPatch,
                      stored: Callable[[torch.Tensor], Matrix]) -> None:
    """In memory and from disk, in one piece and in pieces smaller than k."""
    monkeypatch.setattr(matrix, "ROWS", rows)
    generator = torch.Generator().manual_seed(k)
    bank, queries = torch.randn(83, 11, generator=generator), torch.randn(37, 11, generator=generator)
    labels = torch.randint(0, 5, (83,), generator=generator)
    slow = slow_knn(bank, labels, queries, k, temperature)
    assert knn_predict(bank, labels, queries, k=k, temperature=temperature).tolist() == slow
    mean = torch.full((11,), 3.0)
    vast, asked = (Centred(stored(rows + mean), mean) for rows in (bank, queries))
    found = stored_knn(vast, labels, asked, range(5, 37), k=k, temperature=temperature)
    assert found.tolist() == slow[5:]


def test_bank_finds_itself() -> None:
    bank, labels = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 7
    assert torch.equal(knn_predict(bank, labels, bank, k=1), labels)


def test_length_of_vectors_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    bank, queries = torch.randn(50, 8, generator=generator), torch.randn(20, 8, generator=generator)
    labels = torch.arange(50) % 7
    scaled = bank * torch.rand(50, 1, generator=generator).add(0.1)
    assert torch.equal(knn_predict(bank, labels, queries), knn_predict(scaled, labels, 3 * queries))


def test_order_of_bank_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(2)
    bank, queries = torch.randn(50, 8, generator=generator), torch.randn(20, 8, generator=generator)
    labels, order = torch.arange(50) % 7, torch.randperm(50, generator=generator)
    assert torch.equal(knn_predict(bank, labels, queries), knn_predict(bank[order], labels[order], queries))


def test_whole_bank_at_high_temperature_votes_the_majority() -> None:
    bank, labels = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([2] * 5 + [0] * 4)
    assert knn_predict(bank, labels, torch.randn(6, 4), k=9, temperature=1e6).tolist() == [2] * 6


def test_small_temperature_does_not_overflow() -> None:
    bank, labels = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9)
    assert knn_predict(bank, labels, bank, k=9, temperature=1e-4).tolist() == list(range(9))


def test_impossible_k_is_refused() -> None:
    with pytest.raises(ValueError, match="k = 6 .* allowed: 1 to 5"):
        knn_predict(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), torch.randn(2, 3), k=6)


def test_labels_share_one_numbering() -> None:
    (bank, queries), classes = encode_labels(["b", "a", "b"], ["c", "b"])
    assert (bank.tolist(), queries.tolist(), classes) == ([1, 0, 1], [2, 1], ["a", "b", "c"])


def test_class_absent_from_the_bank_counts_as_wrong() -> None:
    bank = torch.eye(3)
    (labels, wanted), _ = encode_labels(["a", "b", "a"], ["c", "b", "a"])
    assert (knn_predict(bank, labels, bank, k=1) == wanted).tolist() == [False, True, True]


def test_a_query_that_points_nowhere_gets_the_class_of_most() -> None:
    """All neighbours are equally far: the first of the bank, say those of its first class, are no nearer."""
    labels = torch.tensor([0] * 4 + [1] * 5 + [2] * 3)
    found = knn_predict(torch.randn(12, 4), labels, torch.zeros(2, 4), k=3)
    assert found.tolist() == [-1, -1] and lost_to_majority(found, labels).tolist() == [1, 1]


class Asked:
    """Queries whose similarities are known; a piece of the bank is a slice of them. Worked on four at a time."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def strips(self, rows: int) -> Any:
        return map(Asked, self.values.split(4))

    def cosines(self, piece: slice) -> torch.Tensor:
        return self.values[:, piece]


@pytest.mark.parametrize("order", ["mixed", "rising", "falling", "equal"])
def test_the_largest_of_pieces_are_those_of_the_whole(order: str) -> None:
    """Wherever they lie: groups of columns are passed over that hold none, in no piece one that does."""
    values = torch.randn(9, 20 * 640, generator=torch.Generator().manual_seed(1))
    if order in ("rising", "falling"):
        values = values.sort(dim=1, descending=order == "falling").values
    if order == "equal":
        values = values.round()
    pieces = [slice(begin, begin + 640) for begin in range(0, values.shape[1], 640)]
    for k in (1, 20):
        found, columns = nearest_rows(Asked(values), pieces, k)
        assert torch.equal(found, values.topk(k, dim=1).values)
        assert torch.equal(values.gather(1, columns), found) and all(len(set(row)) == k for row in columns.tolist())
