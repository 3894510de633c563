"""Tasks whose loss compares samples with each other: what it takes for a step to compare those of all its passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bigssl.nets.progress import Progress
from bigssl.objectives.base import Losses


class Comparing:
    """Mixed into an `Objective`: its `forward` in two halves, between which `batch.cached` (engine/stepping/cached.py)
    brings together all samples of a step."""

    def forward(self, batch: Any, at: Progress, only_embed: bool = False) -> Any:
        """`Losses` of a micro-batch; with `only_embed` what `embed` makes of it."""
        embeddings = self.embed(batch)
        return embeddings if only_embed else self.compare(embeddings, at)

    def embed(self, batch: Any) -> dict[str, Tensor]:
        """All that `compare` needs of the networks, by name: [B, ...] with a row for each sample of the micro-batch, in
        its order, or [] what is one for all samples (a learned temperature)."""
        raise NotImplementedError

    def compare(self, embeddings: Mapping[str, Tensor], at: Progress) -> Losses:
        """The losses of embeddings as `embed` gives them, of a micro-batch or of all those of a step.

        It uses no parameter, and may move buffers (a queue), which `embed` but for BatchNorm may not.
        """
        raise NotImplementedError
