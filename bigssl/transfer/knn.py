"""Weighted nearest-neighbour classification of frozen features (Wu et al. 2018, arXiv:1805.01978)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from bigssl.transfer.cosines import ASKING, VectorPiece, Vectors

TEMPERATURE = 0.07
GROUP = 32  # columns of which the largest value is looked at first
Best = tuple[Tensor, Tensor]  # values and columns so far, [m, k or fewer]


def encode_labels(*label_lists: Sequence[str]) -> tuple[list[Tensor], list[str]]:
    """Class numbers int64 [N] of each list, numbered over all lists together, and the sorted class names."""
    classes = sorted(set().union(*label_lists))
    number = {name: i for i, name in enumerate(classes)}
    return [torch.tensor([number[label] for label in labels], dtype=torch.int64) for labels in label_lists], classes


def nearest_rows(asked: VectorPiece, bank: Iterable[VectorPiece], k: int) -> tuple[Tensor, Tensor]:
    """(cosines, rows of the bank int64), [m, k] each: of each asked row the k largest, largest first. The bank comes in
    pieces, once. Raises ValueError where it has fewer rows."""
    strips = list(asked.strips(ASKING))
    best: list[Best | None] = [None] * len(strips)
    begin = 0
    for piece in bank:
        for number, strip in enumerate(strips):
            similarities = strip.cosines(piece)
            best[number] = _further(best[number], similarities, begin, k)
        begin += similarities.shape[1]
    found = [each for each in best if each is not None and each[0].shape[1] == k]
    if not found:
        raise ValueError(f"k = {k} neighbours of a bank of {begin} rows; allowed: 1 to {begin}")
    return torch.cat([values for values, _ in found]), torch.cat([columns for _, columns in found])


def _further(best: Best | None, piece: Tensor, begin: int, k: int) -> Best:
    """The k largest of `best` and a piece [m, n] whose first column is `begin`."""
    if best is None or best[0].shape[1] < k or piece.shape[1] % GROUP:
        return _merged(best, *piece.topk(min(k, piece.shape[1]), dim=1), begin, k)
    _improve(best, piece, begin, k)
    return best


def _merged(best: Best | None, values: Tensor, columns: Tensor, begin: int, k: int) -> Best:
    columns = columns + begin
    if best is None:
        return values, columns
    both = torch.cat([best[0], values], dim=1)
    values, chosen = both.topk(min(k, both.shape[1]), dim=1)
    return values, torch.cat([best[1], columns], dim=1).gather(1, chosen)


def _improve(best: Best, piece: Tensor, begin: int, k: int) -> None:
    """Puts what is larger than the k-th value of a row into `best`, in place.

    Late in a large bank few rows have any. Sorting all costs a fifth of the product of matrices; the maximum of each
    group of columns costs little, and tells in which rows and groups to look.
    """
    apart = piece.shape[1] // GROUP  # columns of a group are so far apart
    groups = piece.unflatten(1, (GROUP, apart)).amax(1)
    larger = groups > best[0][:, -1:]
    rows = larger.any(1).nonzero().squeeze(1)
    if not len(rows):
        return
    count = int(larger.sum(1).max())
    if count > apart // 4:
        values, columns = piece[rows].topk(min(k, piece.shape[1]), dim=1)
    else:
        chosen = groups[rows].topk(count, dim=1).indices
        columns = (chosen.unsqueeze(2) + torch.arange(GROUP, device=piece.device) * apart).flatten(1)
        values, order = piece[rows].gather(1, columns).topk(min(k, columns.shape[1]), dim=1)
        columns = columns.gather(1, order)
    best[0][rows], best[1][rows] = _merged((best[0][rows], best[1][rows]), values, columns, begin, k)


def vote(values: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Class int64 [m] with the largest sum of exp(value / temperature) over neighbours [m, k], nearest first; equal
    sums: the lower number. labels: int64 [m, k], the class of each neighbour."""
    # Relative to the nearest one: the same winner, and exp cannot overflow at a small temperature.
    weights = ((values - values[:, :1]) / temperature).exp()
    return torch.zeros(len(values), classes, device=values.device).scatter_add_(1, labels, weights).argmax(1)


def stored_knn(
    bank: Vectors, bank_labels: Tensor, queries: Vectors, rows: range, *, k: int, temperature: float = TEMPERATURE
) -> Tensor:
    """Class int64 [len(rows)] of each of the query `rows`: its k nearest bank rows by cosine vote with weight
    exp(similarity / temperature), computed in float32, exactly, in pieces. -1 of a query that points nowhere: no
    neighbour is nearer than another.

    bank_labels: int64 [N]. Raises ValueError where the bank has fewer rows.
    """
    classes, found = int(bank_labels.max()) + 1, [torch.empty(0, dtype=torch.int64)]
    for _, asked in queries.pieces(rows):
        values, columns = nearest_rows(asked, (part for _, piece in bank.pieces() for part in piece.strips()), k)
        voted = vote(values, bank_labels.to(columns.device)[columns], classes, temperature).cpu()
        found.append(voted.masked_fill(asked.blank, -1))
    return torch.cat(found)


def lost_to_majority(found: Tensor, bank_labels: Tensor) -> Tensor:
    """`found` with the most frequent class of the bank for -1 (ties: the lower number): what all of it would vote."""
    return torch.where(found < 0, bank_labels.bincount().argmax(), found)
