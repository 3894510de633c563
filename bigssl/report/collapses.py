"""Whether what a task watches (`spread/...` in the metrics) has collapsed: in words, while it happens and afterwards.

A spread is 1 where samples are as different as can be and 0 where all are alike (`bigssl.distributed.spread`); of
unit-length rows its square is at most 1 minus the mean cosine of two samples. A loss may look its best while it falls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ALIKE = 0.1  # below it, a collapse begins: two samples have a mean cosine of about .99
APART = 0.2  # above it, it is over: between the two, nothing changes, so that noise says nothing
PREFIX = "spread/"


@dataclass
class Collapse:
    """A stretch of steps; `end` is None where it goes on. spread: the last one seen in it."""

    name: str
    begin: int
    end: int | None
    spread: float

    @property
    def sentence(self) -> str:
        if self.end is None:
            return (f"{self.name}: collapsed since step {self.begin}: those of all samples are nearly alike (spread "
                    f"{self.spread:.3f}; 0: all alike, 1: as different as can be). Whatever the loss says, nothing of "
                    "the input is in them")  # fmt: skip
        return f"{self.name}: collapsed at step {self.begin}, no longer at step {self.end}"


class CollapseWatch:
    """Follows the spreads of a run; `rows` are those of the steps before a resume."""

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()) -> None:
        self.seen: list[Collapse] = []
        self._open: dict[str, Collapse] = {}
        for row in rows:
            self.observe(int(row["step"]), row)

    def observe(self, step: int, values: Mapping[str, float]) -> list[str]:
        """What has begun or ended with the record `values` of a step, in sentences."""
        said = []
        for key, spread in values.items():
            if not key.startswith(PREFIX) or not math.isfinite(spread):
                continue
            name, now = key.removeprefix(PREFIX), self._open.get(key)
            if now is None and spread < ALIKE:
                now = self._open[key] = Collapse(name, step, None, spread)
                self.seen.append(now)
                said.append(now.sentence)
            elif now is not None and spread > APART:
                del self._open[key]
                now.end = step
                said.append(now.sentence)
            if now is not None:
                now.spread = spread
        return said


def collapses(rows: Iterable[Mapping[str, float]]) -> list[Collapse]:
    """All of a run, in order of their beginning. rows: of `metrics.jsonl`."""
    return CollapseWatch(rows).seen
