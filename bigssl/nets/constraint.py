"""What trainable weights are made to satisfy after each step: prototypes of unit length, a scale below its cap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Constraint(NamedTuple):
    """After each optimizer step, each of `parameters` becomes `function` of itself.

    The engine does it (an edit within `forward` or a hook is lost at ZeRO ≥ 1, where the optimizer keeps masters of its
    own), before teachers follow. It does not reach the optimizer's momentum.

    Attributes:
        parameters: trainable ones of the objective.
        function: float32 in the parameter's shape -> the same shape; the same on every rank, no randomness.
    """

    parameters: Sequence[nn.Parameter]
    function: Callable[[Tensor], Tensor]
