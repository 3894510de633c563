"""The slow truth: every loss in a few obvious lines of dense torch. All other implementations are tested against it.

Everything is computed in float32 (float64 for float64 inputs), whatever autocast says, with the whole matrix of logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from bigssl_kernels._checks import accumulator
from bigssl_kernels._dispatch import exact
from bigssl_kernels._distributed import gather, gather_rows, group_name, rank


def unit(rows: Tensor, normalize: bool) -> Tensor:
    """Rows of length one (a row of zeros stays zero and gets no gradient), in the accumulator's dtype."""
    rows = rows.to(accumulator(rows.dtype))
    if not normalize:
        return rows
    norm = rows.norm(dim=1, keepdim=True)
    return rows * (norm > 0) / norm.masked_fill(norm == 0, 1.0)


def own_rows(rows: Tensor, local: int, group: ProcessGroup | None) -> Tensor:
    """Of the rows of all ranks, this rank's `local` ones."""
    return rows[rank(group) * local : (rank(group) + 1) * local]


@exact
def nt_xent(view1: Tensor, view2: Tensor, scale: Tensor, normalize: bool, group: ProcessGroup | None) -> Tensor:
    """[N, D] x 2 -> losses of this rank's 2N rows, view1's first (Chen et al. 2020)."""
    count = view1.shape[0]
    z1, z2 = (gather_rows(unit(view, normalize), group) for view in (view1, view2))
    z = torch.cat([z1, z2])  # [M, D], all ranks' view1, then all ranks' view2
    logits = (z @ z.T * scale).fill_diagonal_(float("-inf"))
    partner = torch.arange(len(z), device=z.device).roll(len(z1))
    losses1, losses2 = F.cross_entropy(logits, partner, reduction="none").split(len(z1))
    return torch.cat([own_rows(losses1, count, group), own_rows(losses2, count, group)])


@exact
def clip_loss(image: Tensor, text: Tensor, scale: Tensor, normalize: bool, group: ProcessGroup | None) -> Tensor:
    """[N, D] x 2 -> mean of both directions' losses for this rank's N pairs (Radford et al. 2021)."""
    images, texts = (gather_rows(unit(tower, normalize), group) for tower in (image, text))
    logits = images @ texts.T * scale  # [M, M]
    diagonal = torch.arange(len(images), device=image.device)
    by_image = F.cross_entropy(logits, diagonal, reduction="none")
    by_text = F.cross_entropy(logits.T, diagonal, reduction="none")
    return own_rows((by_image + by_text) / 2, len(image), group)


@exact
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden [T, H], weight [V, H], labels [T] -> losses, logsumexps, correctness, entropies: [T], 0 where ignored."""
    dtype = accumulator(hidden.dtype)
    logits = F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))  # [T, V]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = F.cross_entropy(
        logits, labels.long(), ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )
    ignored, lse, log_prob = labels == ignore_index, logits.logsumexp(1), logits.log_softmax(1)
    losses = losses + (z_loss * lse.square()).masked_fill(ignored, 0.0)
    correct = (logits.argmax(1) == labels) & ~ignored
    entropy = -(log_prob.exp() * log_prob).sum(1)
    return losses, lse.masked_fill(ignored, 0.0).detach(), correct, entropy.masked_fill(ignored, 0.0).detach()


@exact
def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, scale: Tensor, normalize: bool) -> Tensor:
    """[N, D] x 2, [K, D] -> losses of the N queries (van den Oord et al. 2018; He et al. 2020)."""
    q, p, n = (unit(rows, normalize) for rows in (query, positive, negatives))
    logits = torch.cat([(q * p).sum(1, keepdim=True), q @ n.T], 1) * scale  # [N, 1 + K]
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device), reduction="none")


@exact
def sup_con(
    embeddings: Tensor, ids: Tensor, scale: Tensor, normalize: bool, group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """[M, D], [M] -> losses of this rank's rows (0 without positives), number of rows with positives on all ranks."""
    z = gather_rows(unit(embeddings, normalize), group)
    ids = gather(ids, group_name(group))
    logits = (z @ z.T * scale).fill_diagonal_(float("-inf"))
    positive = (ids[:, None] == ids).fill_diagonal_(False)
    log_prob = logits.log_softmax(1).masked_fill(~positive, 0.0)
    count = positive.sum(1)
    return own_rows(-log_prob.sum(1) / count.clamp(min=1), len(embeddings), group), (count > 0).sum()


@exact
def sigmoid_loss(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, normalize: bool, group: ProcessGroup | None
) -> Tensor:
    """[N, D] x 2 -> losses of this rank's images against all texts (Zhai et al. 2023)."""
    images, texts = (gather_rows(unit(tower, normalize), group) for tower in (image, text))
    logits = images @ texts.T * scale + bias
    sign = 2 * torch.eye(len(images), dtype=logits.dtype, device=logits.device) - 1
    return own_rows(-F.logsigmoid(sign * logits).sum(1), len(image), group)
