"""The last K embeddings of all ranks, for losses that compare with more than a batch holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigssl import distributed


class Queue(nn.Module):
    """First in, first out (MoCo, He et al. 2020, arXiv 1911.05722; SwAV, Caron et al. 2020).

    The same on every rank, and in the order of the global batch whatever the number of ranks. It is made of buffers, so
    that it is saved, goes on on any number of ranks, and moves with the forward pass, as BatchNorm's statistics do.

    Attributes:
        entries: float32 [K, D], zeros where nothing was pushed yet.
        pushed: int64 [], rows pushed so far.
    """

    entries: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("entries", torch.zeros(size, dim))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @property
    def filled(self) -> Tensor:
        """bool [K]: which entries are embeddings."""
        return torch.arange(len(self.entries), device=self.entries.device) < self.pushed

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Add this rank's rows of a pass and everybody else's, in training mode only. Collective, no sync of the host.

        The entries that a loss has been computed with stay as they are: its backward pass may still need them.

        Args:
            rows: [B, D], one per sample in the order of the batch, the same B on every rank. Several views of the
                samples: one call each, so that the order does not depend on the ranks.
        """
        if not self.training:
            return
        size = len(self.entries)
        everywhere = distributed.gather_rows(rows.detach().float())
        kept = everywhere[-size:]
        first = self.pushed + (len(everywhere) - len(kept))
        places = (first + torch.arange(len(kept), device=rows.device)) % size
        self.entries = self.entries.index_copy(0, places, kept)
        self.pushed = self.pushed + len(everywhere)
