"""Real values that were predicted against those that are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Predicted(NamedTuple):
    """Of a sample, its values and what was said of them."""

    truth: Sequence[float]
    said: Sequence[float]


def r_squared(parts: Sequence[Predicted]) -> float:
    """The share of the variance of these samples that was predicted, 1 - Σ (truth - said)² / Σ (truth - mean)²; of
    several values the mean over them. Of one that does not vary it is 1 where all was said exactly, and else 0."""
    truth, said = (np.array(values, dtype=np.float64) for values in zip(*parts, strict=True))
    off, spread = np.square(truth - said).sum(0), np.square(truth - truth.mean(0)).sum(0)
    varies = spread > 0
    return float(np.where(varies, 1 - off / np.where(varies, spread, 1), off == 0).mean())
