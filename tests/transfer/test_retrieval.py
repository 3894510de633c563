"""Retrieval against loops."""

import pytest
import torch

from bigssl.transfer import retrieval
from bigssl.transfer.retrieval import nearest, recall_at_1


@pytest.mark.parametrize("chunk", [1 << 24, 100])
def test_equals_loops(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(31, 6, generator=generator)
    queries = gallery[:23] + 1.2 * torch.randn(23, 6, generator=generator)
    hits = 0
    for i, query in enumerate(queries):
        cosines = [torch.cosine_similarity(query, row, dim=0).item() for row in gallery]
        hits += cosines.index(max(cosines)) == i
    ids = [str(i) for i in range(31)]
    assert 0 < hits < 23
    assert recall_at_1(queries, gallery, ids[:23], ids) == pytest.approx(hits / 23)


def test_collapsed_features_are_at_chance() -> None:
    ids = [str(i) for i in range(20)]
    assert recall_at_1(torch.ones(20, 5), torch.ones(20, 5), ids, ids) == pytest.approx(1 / 20)


def test_the_nearest_row_decides() -> None:
    query, gallery = torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1], [1, 0.1], [1, 0]])
    assert recall_at_1(query, gallery, ["a"], ["a", "a", "b"]) == 0
    assert recall_at_1(query, gallery, ["b"], ["a", "b", "b"]) == 1


def test_nearest_of_orthogonal_rows() -> None:
    assert nearest(torch.eye(4)[[2, 0]], 5 * torch.eye(4)).tolist() == [2, 0]


def test_query_without_counterpart_is_refused() -> None:
    with pytest.raises(ValueError, match="1 query ids are not in the gallery, the first 'z'"):
        recall_at_1(torch.eye(2), torch.eye(2), ["a", "z"], ["a", "b"])
