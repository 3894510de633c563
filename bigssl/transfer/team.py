"""The ranks that evaluate together: who does what, and how results come together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from bigssl import distributed
from bigssl.data.errors import DataError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # ranks may differ by hours; one that ends is noticed at once, its connections close


class Team:
    """All ranks of the process group (one where there is none). Building it is a collective, so are its methods.

    They talk through a gloo group of their own, on the CPU: a rank that waits there for a slower one is no collective
    of the training's backend that could time out.
    """

    def __init__(self) -> None:
        self.rank, self.world = distributed.rank(), distributed.world()
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if distributed.active() else None

    def share(self, count: int) -> range:
        """This rank's contiguous part of `count` things; the parts in rank order are all of them."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What `make` (picklable result) returns on each rank, in rank order.

        Raises DataError on every rank where it does on one: none waits for a rank that has given up.
        """
        result: Any = None
        cause: DataError | None = None
        try:
            result = make()
        except DataError as error:
            cause = error
        if self._group is None:
            if cause is not None:
                raise cause
            return [result]
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, (result, str(cause) if cause else ""), group=self._group)
        if cause is not None:
            raise cause
        if elsewhere := [text for _, text in boxes if text]:
            raise DataError(elsewhere[0])
        return [each for each, _ in boxes]

    def total(self, part: Tensor) -> Tensor:
        """Sum over ranks of a tensor on the CPU, of equal shape everywhere; in place."""
        if self._group is not None:
            dist.all_reduce(part, group=self._group)
        return part
