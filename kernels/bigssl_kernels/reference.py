"""The masked-token loss in a few obvious lines of dense torch, against which the other implementations are tested.

Everything is computed in float32 (float64 for float64 inputs), whatever autocast says, with the whole matrix of logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl_kernels.checks import accumulator
from bigssl_kernels.dispatch import exact


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
    ignored, lse, log_prob = labels == ignore_index, logits.logsumexp(1), logits.log_softmax(1)
    outside = ~ignored & ((labels < 0) | (labels >= weight.shape[0]))  # where nobody looked: see `checked_labels`
    losses = F.cross_entropy(
        logits,
        labels.masked_fill(outside, ignore_index),
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    ).masked_fill(outside, float("nan"))
    losses = losses + (z_loss * lse.square()).masked_fill(ignored, 0.0)
    correct = (logits.argmax(1) == labels) & ~ignored
    entropy = torch.special.entr(log_prob.exp()).sum(1)  # a class of probability 0 adds 0
    return losses, lse.masked_fill(ignored, 0.0).detach(), correct, entropy.masked_fill(ignored, 0.0).detach()
