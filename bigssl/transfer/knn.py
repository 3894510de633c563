"""Weighted nearest-neighbour classification of frozen features (Wu et al. 2018, arXiv:1805.01978)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from bigssl.transfer.cosines import Vectors

TEMPERATURE = 0.07
GROUP = 32  # columns of which the largest value is looked at first


def encode_labels(*label_lists: Sequence[str]) -> tuple[list[Tensor], list[str]]:
    """Class numbers int64 [N] of each list, numbered over all lists together, and the sorted class names."""
    classes = sorted(set().union(*label_lists))
    number = {name: i for i, name in enumerate(classes)}
    return [torch.tensor([number[label] for label in labels], dtype=torch.int64) for labels in label_lists], classes


def top(similarities: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """(values, columns int64), [m, k] each: the k largest in each row of a wide matrix that comes in pieces [m, n]."""
    best: tuple[Tensor, Tensor] | None = None
    begin = 0
    for piece in similarities:
        floor = None if best is None or best[0].shape[1] < k else best[0][:, -1:]
        values, columns = _largest(piece, k, floor)
        columns = columns + begin
        begin += piece.shape[1]
        if best is not None:
            both = torch.cat([best[0], values], dim=1)
            values, chosen = both.topk(min(k, both.shape[1]), dim=1)
            columns = torch.cat([best[1], columns], dim=1).gather(1, chosen)
        best = values, columns
    if best is None or best[0].shape[1] < k:
        raise ValueError(f"k = {k} neighbours of a bank of {begin} rows; allowed: 1 to {begin}")
    return best


def _largest(piece: Tensor, k: int, floor: Tensor | None) -> tuple[Tensor, Tensor]:
    """(values, columns) of [m, n], k of each row at most, among them all of the k largest that exceed `floor` [m, 1].

    Late in a large bank few do. Sorting all costs a fifth of the product of matrices; the maximum of each group of
    columns costs little, and tells which of them hold such values.
    """
    width = piece.shape[1]
    if floor is None or width % GROUP:
        return piece.topk(min(k, width), dim=1)
    groups = piece.unflatten(1, (GROUP, width // GROUP)).amax(1)  # each of columns that are width / GROUP apart
    count = int((groups > floor).sum(1).max())
    if count * GROUP > width // 4:
        return piece.topk(min(k, width), dim=1)
    chosen = groups.topk(count, dim=1).indices
    apart = torch.arange(GROUP, device=piece.device) * (width // GROUP)
    columns = (chosen.unsqueeze(2) + apart).flatten(1)
    values, order = piece.gather(1, columns).topk(min(k, columns.shape[1]), dim=1)
    return values, columns.gather(1, order)


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
        values, columns = top((asked.cosines(part) for _, piece in bank.pieces() for part in piece.strips()), k)
        voted = vote(values, bank_labels.to(columns.device)[columns], classes, temperature).cpu()
        found.append(voted.masked_fill(asked.blank, -1))
    return torch.cat(found)


def lost_to_majority(found: Tensor, bank_labels: Tensor) -> Tensor:
    """`found` with the most frequent class of the bank for -1 (ties: the lower number): what all of it would vote."""
    return torch.where(found < 0, bank_labels.bincount().argmax(), found)
