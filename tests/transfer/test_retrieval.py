"""Retrieval against loops: of views, and across modalities."""

from collections.abc import Callable

import pytest
import torch

from bigssl.transfer import matrix
from bigssl.transfer.cosines import Centred
from bigssl.transfer.matrix import Matrix
from bigssl.transfer.recall import first_ranks

Stored = Callable[[torch.Tensor], Matrix]


def hits(stored: Stored, queries: torch.Tensor, gallery: torch.Tensor, query_ids: list[str], gallery_ids: list[str]
         ) -> list[bool]:
    """Queries and gallery as rows of one matrix, queries first."""
    rows = Centred(stored(torch.cat([queries, gallery])), torch.zeros(queries.shape[1]))
    asking = range(len(queries))
    members = range(len(queries), len(rows))
    ids = query_ids + gallery_ids
    ranks = first_ranks(rows, asking, ids, rows, members, ids, range(len(rows)), deepest=1)
    return [rank == 1 for rank in ranks.tolist()]


@pytest.mark.parametrize("rows", [4096, 7])
def test_equals_loops(rows: int, stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking rows and gallery lie mixed in the matrix; a share of its rows gives that share of the hits."""
    monkeypatch.setattr(matrix, "ROWS", rows)
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(31, 6, generator=generator)
    both = torch.stack([items, items + 1.2 * torch.randn(31, 6, generator=generator)], dim=1).flatten(0, 1)
    gallery, asking = list(range(0, 62, 2)), list(range(1, 47, 2))
    ids = [str(i // 2) for i in range(62)]
    slow = []
    for row in asking:
        cosines = [torch.cosine_similarity(both[row], both[other], dim=0).item() for other in gallery]
        slow.append(1 + sum(each > cosines[row // 2] for each in cosines))
    assert {1, 2, 3} < set(slow) and max(slow) > 5
    mean = torch.tensor([5.0, 0, 0, -3, 0, 0])
    there = Centred(stored(both + mean), mean)

    def found(rows: range, deepest: int) -> list[int]:
        return first_ranks(there, asking, ids, there, gallery, ids, rows, deepest=deepest).tolist()

    for deepest in (1, 5, 31, 99):
        assert found(range(62), deepest) == [min(rank, deepest + 1) for rank in slow], deepest
    parts = [found(range(a, b), 5) for a, b in ((0, 20), (20, 62))]
    assert parts[0] + parts[1] == found(range(62), 5) and len(parts[0]) == 10


def test_collapsed_features_are_at_chance(stored: Stored) -> None:
    ids = [str(i) for i in range(20)]
    assert sum(hits(stored, torch.ones(20, 5), torch.ones(20, 5), ids, ids)) == 1


def test_the_nearest_row_decides(stored: Stored) -> None:
    query, gallery = torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1], [1, 0.1], [1, 0]])
    assert hits(stored, query, gallery, ["a"], ["a", "a", "b"]) == [False]
    assert hits(stored, query, gallery, ["b"], ["a", "b", "b"]) == [True]


def test_query_without_counterpart_is_refused(stored: Stored) -> None:
    with pytest.raises(ValueError, match="1 query ids are not in the gallery, the first 'z'"):
        hits(stored, torch.eye(2), torch.eye(2), ["a", "z"], ["a", "b"])
