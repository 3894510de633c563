"""Tasks whose loss is one of the hidden states of one pass: what it takes for two of them to share that pass.

`Joint` has parts share one where its recipe says so (`shares`), as BERT's two tasks do:

    host (next_sentence)   sample ── inputs ────────────┐            ┌── its loss, by its labels
    guest (mlm)                      inputs, masked ────┴── body ────┴── its loss, by what it masked
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses


class OnHidden:
    """Mixed into an `Objective`: its `forward` is a pass through `backbone`, and a loss on what that gives."""

    backbone: Tower

    def forward(self, batch: Any, at: Progress, hidden: Tensor | None = None) -> Losses:
        """`Losses` of a micro-batch. hidden: what `hidden` gives for it, where that is known."""
        return self.judge(self.hidden(batch) if hidden is None else hidden, batch, at)

    def hidden(self, batch: Any) -> Tensor:
        """Hidden states [B, T, D] of a batch: the one pass."""
        return self.backbone.hidden(batch)

    def judge(self, hidden: Tensor, batch: Any, at: Progress) -> Losses:
        """The losses of hidden states, which do not call the backbone again."""
        raise NotImplementedError


class Host(OnHidden):
    """One whose samples another task may change before the pass."""

    def prepare_words(self, sample: Sample, rng: np.random.Generator, more: More) -> tuple[dict[str, Any], np.ndarray]:
        """What `prepare` gives, and the number of each token's word, int64 [T] (see `bigssl.data.kinds.masking`)."""
        raise NotImplementedError


class Guest(OnHidden):
    """One that can learn from the samples of another task."""

    def guest_reason(self) -> str:
        """Why these settings cannot; "" where they can."""
        return ""

    def change(
        self, sample: Sample, prepared: dict[str, Any], words: np.ndarray, rng: np.random.Generator, more: More
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The host's sample as the body shall see it, and fields of this task's own beside it, of other names.

        Args:
            sample, rng, more: as of `prepare`. prepared, words: what `prepare_words` of the host made of it.
        """
        raise NotImplementedError
