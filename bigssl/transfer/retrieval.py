"""Finding the other view of the same item by nearest neighbour."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bigssl.transfer.knn import top, unit
from bigssl.transfer.matrix import Matrix


def retrieval_hits(matrix: Matrix, mean: Tensor, asking: Sequence[int], gallery: Sequence[int], ids: Sequence[str],
                   rows: range, device: str | torch.device = "cpu") -> Tensor:
    """bool: for each asking row that lies in `rows`, in order, whether the gallery row nearest to it has its id.

    asking, gallery: ascending row numbers of the matrix [N, D], from which `mean` [D] is taken. ids: of all N rows.
    Cosine, float32, exact, in pieces. Raises ValueError where an id has no counterpart in the gallery: such a query
    could only fail.
    """
    alone = sorted({ids[row] for row in asking} - {ids[row] for row in gallery})
    if alone:
        raise ValueError(f"{len(alone)} query ids are not in the gallery, the first {alone[0]!r}; leave them out")
    wanted, members = set(asking), set(gallery)
    hits: list[bool] = []
    for numbers, piece in matrix.pieces(rows):
        mine = [row for row in numbers if row in wanted]
        if not mine:
            continue
        queries = unit(piece[[row - numbers.start for row in mine]] - mean).to(device)
        parts = (
            unit(part[[row - there.start for row in there if row in members]] - mean).to(device)
            for there, part in matrix.pieces()
        )
        _, nearest = top((queries @ part.T for part in parts if len(part)), 1)
        hits += [ids[gallery[found]] == ids[row] for row, found in zip(mine, nearest[:, 0].tolist(), strict=True)]
    return torch.tensor(hits, dtype=torch.bool)
