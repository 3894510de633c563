"""The passes of a step: what is done before the first, and with each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bigssl import distributed
from bigssl.data.loading.loader import Batch
from bigssl.engine.zero import Engine
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Losses
from bigssl.objectives.counting import Counting


class Passes(Protocol):
    """How the micro-batches of a step pass the networks. gathers: `begin` wants all of them at once."""

    gathers: bool

    def begin(self, batches: Iterator[Batch], at: Progress) -> Iterable[Batch]:
        """Once a step; gives those batches that `__call__` then takes one after the other. Collective."""
        ...

    def __call__(self, data: Any, at: Progress) -> tuple[Tensor, Losses]:
        """What to differentiate, and the losses to report. Collective."""
        ...


class EachPass:
    """A pass after the other: the loss of a micro-batch knows nothing of the others."""

    gathers = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, batches: Iterator[Batch], at: Progress) -> Iterable[Batch]:
        return batches

    def __call__(self, data: Any, at: Progress) -> tuple[Tensor, Losses]:
        losses: Losses = self._engine(data, at)
        return losses.total, losses


class CountedPasses(EachPass):
    """A pass after the other, each of which knows how much the whole step has of what a loss is the mean over
    (`Counting.units`). All micro-batches of a step are in memory at once, on the host."""

    gathers = True

    def __init__(self, engine: Engine, objective: Counting, device: torch.device) -> None:
        super().__init__(engine)
        self._objective, self._device = objective, device

    def begin(self, batches: Iterator[Batch], at: Progress) -> Iterable[Batch]:
        kept = list(batches)
        counts = [self._objective.units(batch.data) for batch in kept]
        sums = torch.tensor([float(sum(each[name] for each in counts)) for name in counts[0]], dtype=torch.float64)
        means = distributed.all_reduce_sum(sums.to(self._device)) / (len(kept) * distributed.world())
        units = dict(zip(counts[0], means.float().unbind(), strict=True))
        return [replace(batch, data=self._objective.told(batch.data, units)) for batch in kept]
