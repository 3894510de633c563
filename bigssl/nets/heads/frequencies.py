"""What is known of a token without looking: how often each was the answer so far."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigssl import distributed
from bigssl.nets.heads.base import IGNORED


class TokenFrequencies(nn.Module):
    """The blind line of masked and causal language models: the cross-entropy of tokens under their running frequencies.

    Predictive: labels are scored by the counts of the passes before them, of all ranks, and only then counted, so that
    the value is honest from the first pass on (ln V there). A token seen c times among n, of T kinds, has probability
    (c + (T + 1) / V) / (n + T + 1): Witten and Bell 1991, method C, over a uniform prior.

    The counts are a buffer, so that they go on after a resume. They are equal on all ranks.
    """

    counts: Tensor

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(vocabulary, dtype=torch.int64))

    def count(self, tokens: Tensor) -> None:
        """Counts tokens, int64 [N], of this process alone."""
        self.counts += torch.bincount(tokens, minlength=len(self.counts))

    def surprise(self) -> Tensor:
        """-ln of each token's probability by the counts so far, float32 [V]."""
        kinds = (self.counts > 0).sum() + 1
        return (self.counts.sum() + kinds).log() - (self.counts + kinds / len(self.counts)).log()

    @torch.no_grad()
    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over all ranks' labels, and their number; counts them when in training mode. Collective.

        Args:
            labels: int64, any shape, -100 where there is nothing to predict.

        Returns:
            [] float32 in nats (0 where no token is labelled), [] int64; the same on every rank.
        """
        vocabulary = len(self.counts)
        slots = labels.flatten().where(labels.flatten() != IGNORED, vocabulary)  # bincount takes no negative numbers
        histogram = torch.zeros(vocabulary + 1, dtype=torch.int64, device=labels.device)
        histogram.scatter_add_(0, slots, torch.ones_like(slots))
        # a pass has fewer than 2³¹ tokens: half of the bytes between ranks
        histogram = distributed.all_reduce_sum(histogram[:vocabulary].int()).long()
        surprise, count = self.surprise(), histogram.sum()
        if self.training:
            self.counts += histogram
        return (histogram * surprise).sum() / count.clamp(min=1), count
