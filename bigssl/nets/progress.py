"""How far a run has come: what schedules inside a network or a loss are functions of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Progress(NamedTuple):
    """The same on every rank and after a resume.

    Attributes:
        step: optimizer steps done before this one, 0 at the start.
        steps: of the whole run.
    """

    step: int
    steps: int


@dataclass(frozen=True)
class CosineRamp:
    """From `start` at the first step towards `stop` at the end of the run, along half a cosine.

    A teacher's momentum in BYOL (Grill et al. 2020, appendix: 1 − (1 − τ)(cos(πk/K) + 1)/2) and DINO.
    """

    start: float
    stop: float

    def __call__(self, at: Progress) -> float:
        left = 0.5 * (math.cos(math.pi * at.step / at.steps) + 1)
        return self.stop - (self.stop - self.start) * left


@dataclass(frozen=True)
class LinearRamp:
    """From `start` at the first step to `stop` when a `share` of the run is done, along a line; then it stays.

    A teacher's temperature in DINO (Caron et al. 2021, arXiv 2104.14294, appendix: .04 to .07 in 30 epochs).
    """

    start: float
    stop: float
    share: float

    def __call__(self, at: Progress) -> float:
        done = at.step / at.steps
        return self.stop if done >= self.share else self.start + (self.stop - self.start) * done / self.share
