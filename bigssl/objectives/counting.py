"""Means over things of which passes and ranks have now more, now fewer (labelled tokens): that of a step is the mean
over all that its passes have on all ranks, however it is split.

    loss of a pass on a rank = Σ over its own / n        n = how many the step has / (passes · ranks)

The engine takes the mean over passes and ranks, which is then Σ over all / how many there are. n is one number for the
whole step: before its first pass, the loop counts (`Counting.units`), and tells each (`Counting.told`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from bigssl import distributed

UNITS = "units"  # key of a batch


class Counting:
    """Mixed into an `Objective` whose loss is such a mean."""

    accumulates: ClassVar[bool] = True

    @property
    def counting(self) -> bool:
        """Whether `units` says something: of a task made of tasks, these decide."""
        return True

    def units(self, batch: Any) -> dict[str, int]:
        """How many things the losses of this pass on this rank are means over, by loss ("" where there is one), as the
        host knows them."""
        raise NotImplementedError

    def told(self, batch: Any, units: Mapping[str, Tensor]) -> Any:
        """`batch` with n, float32 [] by loss, of the whole step."""
        return batch | {UNITS: dict(units)}


def mean_of_step(
    batch: Mapping[str, Any], total: Tensor, blind: Tensor, everywhere: Tensor, name: str = ""
) -> tuple[Tensor, Tensor]:
    """[] the loss and [] its blind value for one pass on one rank.

    Where nobody has counted the step, the pass is taken for all of it. Nothing anywhere gives 0, with gradient 0.

    Args:
        total: [] sum over this rank's things, with gradient.
        blind: [] mean over those of all ranks in this pass.
        everywhere: [] int64, how many these are.
        name: of the loss among those that `Counting.units` counts for.
    """
    mine = everywhere / distributed.world()
    mean = (batch[UNITS][name] if UNITS in batch else mine).clamp(min=1 / distributed.world())
    return total / mean, blind * mine / mean
