"""The contrastive losses in a few obvious lines of dense torch, with the whole matrix of logits.

With products in the accumulator's dtype these are the reference against which all else is tested. With products in the
dtype of the embeddings they serve batches so small that one matrix costs less than walking over its tiles.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from bigssl_kernels.checks import accumulator, compute_dtype
from bigssl_kernels.dispatch import exact
from bigssl_kernels.distributed import gather, gather_rows, group_name, rank, world_size

SMALL = 512
CANDIDATES: dict[str, Callable[..., int]] = {  # how many a row has to pick from, by the loss's tensors
    "nt_xent": lambda view1, *_: 2 * view1.shape[0] - 1,
    "clip_loss": lambda image, *_: image.shape[0],
    "info_nce": lambda query, positive, negatives, *_: 1 + negatives.shape[0],
    "sup_con": lambda embeddings, *_: embeddings.shape[0] - 1,
    "sigmoid_loss": lambda image, *_: image.shape[0],
}


def single(fn: str, group: ProcessGroup | None, *tensors: Any) -> bool:
    """Has each row of the loss `fn` one candidate only?"""
    return fn in CANDIDATES and CANDIDATES[fn](*tensors) == 1 and world_size(group) == 1


def products_in(fn: str, chosen: str, rows: int, group: ProcessGroup | None, *tensors: Tensor) -> torch.dtype | None:
    """The dtype of products where the loss `fn` of `tensors` is computed densely, None where it is tiled.

    The reference is dense throughout, and so is every loss whose rows have one candidate to pick: its one logit cancels
    to exactly 0, whereas a tile's and a pair's product are rounded apart. On a CPU a matrix of up to SMALL rows costs
    less than the operators around tiles.
    """
    data = tensors[0]
    if chosen == "reference" or single(fn, group, *tensors):
        return accumulator(data.dtype)
    small = chosen == "torch" and group is None and data.device.type == "cpu" and rows <= SMALL
    return compute_dtype(data) if small else None


def unit(rows: Tensor, normalize: bool, dtype: torch.dtype) -> Tensor:
    """Rows of length one in `dtype`; a row of zeros stays zero and gets no gradient."""
    if not normalize:
        return rows.to(dtype)
    rows = rows.to(accumulator(rows.dtype))
    norm = rows.norm(dim=1, keepdim=True)
    return (rows / norm.masked_fill(norm == 0, float("inf"))).to(dtype)


def logits_of(rows: Tensor, cols: Tensor, scale: Tensor) -> Tensor:
    """scale * rows @ cols.T, made in the dtype of the rows, returned in that of the scale."""
    return (rows @ cols.T).mul_(scale).to(scale.dtype)


def own_rows(rows: Tensor, local: int, group: ProcessGroup | None) -> Tensor:
    """Of the rows of all ranks, this rank's `local` ones."""
    return rows if group is None else rows[rank(group) * local : (rank(group) + 1) * local]


@exact
def nt_xent(
    view1: Tensor, view2: Tensor, scale: Tensor, normalize: bool, group: ProcessGroup | None, dtype: torch.dtype
) -> Tensor:
    """[N, D] x 2 -> losses of this rank's 2N rows, view1's first (Chen et al. 2020)."""
    count, z = view1.shape[0], unit(torch.cat([view1, view2]), normalize, dtype)
    if group is not None:  # all ranks' view1, then all ranks' view2
        z = torch.cat([gather_rows(view, group) for view in z.split(count)])
    logits = logits_of(z, z, scale).fill_diagonal_(float("-inf"))  # [M, M]
    half = len(z) // 2
    partner = torch.arange(len(z), device=z.device).roll(half)
    losses = F.cross_entropy(logits, partner, reduction="none")
    return losses if group is None else torch.cat([own_rows(part, count, group) for part in losses.split(half)])


@exact
def clip_loss(
    image: Tensor, text: Tensor, scale: Tensor, normalize: bool, group: ProcessGroup | None, dtype: torch.dtype
) -> Tensor:
    """[N, D] x 2 -> mean of both directions' losses for this rank's N pairs (Radford et al. 2021)."""
    images, texts = (gather_rows(unit(tower, normalize, dtype), group) for tower in (image, text))
    logits = logits_of(images, texts, scale)  # [M, M]
    diagonal = torch.arange(len(images), device=image.device)
    by_image = F.cross_entropy(logits, diagonal, reduction="none")
    by_text = F.cross_entropy(logits.T, diagonal, reduction="none")
    return own_rows((by_image + by_text) / 2, len(image), group)


@exact
def info_nce(
    query: Tensor, positive: Tensor, negatives: Tensor, scale: Tensor, normalize: bool, dtype: torch.dtype
) -> Tensor:
    """[N, D] x 2, [K, D] -> losses of the N queries (van den Oord et al. 2018; He et al. 2020)."""
    q, p, n = (unit(rows, normalize, dtype) for rows in (query, positive, negatives))
    own = (q.to(scale.dtype) * p).sum(1, keepdim=True) * scale
    logits = torch.cat([own, logits_of(q, n, scale)], 1)  # [N, 1 + K]
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device), reduction="none")


@exact
def sup_con(
    embeddings: Tensor,
    ids: Tensor,
    scale: Tensor,
    normalize: bool,
    group: ProcessGroup | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """[M, D], [M] -> losses of this rank's rows (0 without positives), number of rows with positives on all ranks."""
    z = gather_rows(unit(embeddings, normalize, dtype), group)
    ids = gather(ids, group_name(group))
    logits = logits_of(z, z, scale).fill_diagonal_(float("-inf"))
    positive = (ids[:, None] == ids).fill_diagonal_(False)
    log_prob = logits.log_softmax(1).masked_fill(~positive, 0.0)
    count = positive.sum(1)
    return own_rows(-log_prob.sum(1) / count.clamp(min=1), len(embeddings), group), (count > 0).sum()


@exact
def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    normalize: bool,
    group: ProcessGroup | None,
    dtype: torch.dtype,
) -> Tensor:
    """[N, D] x 2 -> losses of this rank's images against all texts (Zhai et al. 2023)."""
    images, texts = (gather_rows(unit(tower, normalize, dtype), group) for tower in (image, text))
    logits = logits_of(images, texts, scale) + bias
    sign = 2 * torch.eye(len(images), dtype=logits.dtype, device=logits.device) - 1
    return own_rows(-F.logsigmoid(sign * logits).sum(1), len(image), group)
