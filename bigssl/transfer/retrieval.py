"""Finding the other view of the same item by nearest neighbour."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl.transfer.knn import CHUNK


def nearest(queries: Tensor, gallery: Tensor) -> Tensor:
    """Row int64 [M] of the gallery [N, D] with the largest cosine to each query [M, D]; float32, exact, in chunks."""
    gallery, queries = F.normalize(gallery.float(), dim=1), F.normalize(queries.float(), dim=1)
    rows = max(1, CHUNK // len(gallery))
    return torch.cat([(part @ gallery.T).argmax(1) for part in queries.split(rows)])


def retrieval_hits(queries: Tensor, gallery: Tensor, query_ids: Sequence[str], gallery_ids: Sequence[str]) -> Tensor:
    """bool [M]: whether the nearest gallery row carries the query's id.

    Raises ValueError where an id has no counterpart in the gallery: such a query could only fail.
    """
    alone = sorted(set(query_ids) - set(gallery_ids))
    if alone:
        raise ValueError(f"{len(alone)} query ids are not in the gallery, the first {alone[0]!r}; leave them out")
    found = nearest(queries, gallery).tolist()
    return torch.tensor([gallery_ids[row] == wanted for row, wanted in zip(found, query_ids, strict=True)])


def recall_at_1(queries: Tensor, gallery: Tensor, query_ids: Sequence[str], gallery_ids: Sequence[str]) -> float:
    """Share of the queries (0 to 1) whose nearest gallery row has the same id. queries [M, D], gallery [N, D]."""
    return retrieval_hits(queries, gallery, query_ids, gallery_ids).float().mean().item()
