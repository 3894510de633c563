"""Weighted nearest-neighbour classification of frozen features (Wu et al. 2018, arXiv:1805.01978)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 24  # similarities held at once: 64 MiB of float32


def encode_labels(*label_lists: Sequence[str]) -> tuple[list[Tensor], list[str]]:
    """Class numbers int64 [N] of each list, numbered over all lists together, and the sorted class names."""
    classes = sorted(set().union(*label_lists))
    number = {name: i for i, name in enumerate(classes)}
    return [torch.tensor([number[label] for label in labels], dtype=torch.int64) for labels in label_lists], classes


def knn_predict(bank: Tensor, bank_labels: Tensor, queries: Tensor, *, k: int = 20,
                temperature: float = 0.07) -> Tensor:
    """Class int64 [M] of each query: its k nearest bank rows by cosine vote with weight exp(similarity / temperature).

    bank [N, D], bank_labels int64 [N], queries [M, D]; any float dtype, computed in float32, exactly, in chunks.
    Classes with equal votes: the lower number.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k = {k} neighbours of a bank of {len(bank)} rows; allowed: 1 to {len(bank)}")
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    classes = int(bank_labels.max()) + 1
    rows = max(1, CHUNK // len(bank))
    return torch.cat([_vote(part @ bank.T, bank_labels, classes, k, temperature) for part in queries.split(rows)])


def _vote(similarity: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    values, neighbours = similarity.topk(k, dim=1)  # [m, k]
    # Relative to the nearest one: the same winner, and exp cannot overflow at a small temperature.
    weights = ((values - values[:, :1]) / temperature).exp()
    votes = torch.zeros(len(similarity), classes, device=similarity.device)
    return votes.scatter_add_(1, labels[neighbours], weights).argmax(1)


def knn_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *, k: int = 20,
                 temperature: float = 0.07) -> float:
    """Share of the queries (0 to 1) whose class `knn_predict` finds."""
    found = knn_predict(bank, bank_labels, queries, k=k, temperature=temperature)
    return (found == query_labels).float().mean().item()
