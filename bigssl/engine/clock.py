"""Where the time of a step goes."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

MODEL = ("forward", "backward", "optimizer")


class Clock:
    """Seconds by stage since the last `lap`. On GPUs these are host times: kernels run behind them."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._spent[stage] += time.perf_counter() - begin

    def lap(self) -> dict[str, float]:
        """Wall seconds of the lap, and the shares (0 to 1) of data wait and driver overhead; starts the next lap.

        The overhead is what is left of training time beside data wait, forward, backward and optimizer; probes and
        checkpoints are done on purpose and are taken out of the lap.
        """
        now = time.perf_counter()
        wall = now - self._start - self._spent["probe"] - self._spent["checkpoint"]
        model = sum(self._spent[stage] for stage in MODEL)
        shares = {
            "wall": wall,
            "data_wait": self._spent["data"] / wall,
            "driver_overhead": max(0.0, wall - model - self._spent["data"]) / wall,
        }
        self._spent.clear()
        self._start = now
        return shares
