"""Where the time of a step goes."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import ClassVar

MODEL = ("forward", "backward", "optimizer")


class Clock:
    """Seconds by stage since the last `lap`. On GPUs these are host times: kernels run behind them."""

    now: ClassVar[str] = "the start"
    """What this process is in, in words, for the other ranks (engine/meeting/watch.py)."""

    def __init__(self) -> None:
        self._done = 0
        self._spent: dict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, stage: str, done: int | None = None) -> Iterator[None]:
        """done: steps made before it, where it is the first of a step."""
        self._done = self._done if done is None else done
        Clock.now = f"{stage} after step {self._done}"
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


class DataWait:
    """Tells a run whose loader is slower than its model so: once, and again only after it had recovered."""

    LIMIT = 0.2  # share of the time
    SPAN = 20.0  # seconds over which the share counts; a pause of one step is no reason

    def __init__(self, workers: int) -> None:
        self._workers, self._told, self._started = workers, False, False
        self._wall = self._waited = 0.0

    def observe(self, lap: dict[str, float]) -> str:
        """What to print after a lap of `Clock`, or "". The first lap, in which workers start, does not count."""
        if not self._started:
            self._started = True
            return ""
        self._wall += lap["wall"]
        self._waited += lap["wall"] * lap["data_wait"]
        if self._wall < self.SPAN:
            return ""
        wall, share = self._wall, self._waited / self._wall
        self._wall = self._waited = 0.0
        before, self._told = self._told, share > (self.LIMIT / 2 if self._told else self.LIMIT)
        if before or not self._told:
            return ""
        return (
            f"the loader is slower than the model: data wait {100 * share:.0f} % of the last {wall:.0f} s; raise "
            f"data.workers (now {self._workers}), or make samples cheaper to read and prepare"
        )
