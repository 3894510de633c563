"""Whether what a task watches (`spread/...` in the metrics), its embeddings or the features that a probe looks at
(`health/NAME/rankme`), have collapsed: in words, while it happens and afterwards.

A spread is 1 where samples are as different as can be and 0 where all are alike (`bigssl.distributed.spread`); of
unit-length rows its square is at most 1 minus the mean cosine of two samples. RankMe is the number of directions that
rows span: samples may all differ and still differ in one direction only, where dimensions have collapsed into each
other. Less one, since a single direction, that of the mean, tells nothing, it has collapsed below a tenth of what it
was when the run began (the network was untrained then, or came with something), as a network that is evaluated has
beside one with random weights (`bigssl.report.health`). What a collapse leaves, one to four, does not grow with the
width, and a network that knows a dozen classes and nothing else spans a dozen at any: of what it was, 40 directions
count at most (healthy SimSiam spanned 12 to 17 of 256 where it had begun with 171, without its predictor 2). What began
with few is compared with a tenth of what is possible, of 128 directions where there are more. A loss may look its best
while either falls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

ALIKE = 0.1  # a spread below it is a collapse: two samples have a mean cosine of about .99
LIMITS = (ALIKE, 0.2)  # it begins below the first and is over above the second: noise says nothing
WIDE, MANY, TENTH = 128, 40, 0.1
FEW = 8  # directions that must be possible: the rank of a handful of samples is chance
PREFIX, RANK = "spread/", "directions of "
_BEYOND = ". Whatever the loss says, next to nothing of the input is in them"
_ALIKE = "those of all samples are nearly alike (spread {:.3f}; 0: all alike, 1: as different as can be)" + _BEYOND
_OF_A_GAME = {  # of a generator and a discriminator, `bigssl/nets/heads/gan.py`
    "fills": "all samples are filled in nearly alike (spread {:.3f}; 0: all alike, 1: as different as the truth). The "
    "generator has collapsed to one answer, whatever it is shown",
    "discriminator": "it sees nearly the same in every picture and every fill (spread {:.3f}; 0: all alike, 1: as "
    "different as can be). What it says teaches the generator nothing",
    "doubt": "the discriminator is sure of all that it sees ({:.3f}; 0: sure, 1: undecided). It has won, or says the "
    "same of everything: log D is saturated, and teaches the generator next to nothing",
}


@dataclass(frozen=True)
class Watched:
    """What is looked at. level: 0 where all is lost; seen: what a person reads of it."""

    name: str
    level: float
    seen: str


@dataclass
class Collapse:
    """A stretch of steps; `end` is None where it goes on. seen: what was seen last in it."""

    name: str
    begin: int
    end: int | None
    seen: str

    @property
    def sentence(self) -> str:
        if self.end is None:
            return f"{self.name}: collapsed since step {self.begin}: {self.seen}"
        return f"{self.name}: collapsed at step {self.begin}, no longer at step {self.end}"


class CollapseWatch:
    """Follows what may collapse in a run; `rows` are those of the steps before a resume."""

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()) -> None:
        self.seen: list[Collapse] = []
        self._open: dict[str, Collapse] = {}
        self._first: dict[str, float] = {}
        for row in rows:
            self.observe(int(row["step"]), row)

    def observe(self, step: int, values: Mapping[str, float]) -> list[str]:
        """What has begun or ended with the record `values` of a step, in sentences."""
        said = []
        for each in self._watched(values):
            now, (least, enough) = self._open.get(each.name), LIMITS
            if now is None and each.level < least:
                now = self._open[each.name] = Collapse(each.name, step, None, each.seen)
                self.seen.append(now)
                said.append(now.sentence)
            elif now is not None and each.level > enough:
                del self._open[each.name]
                now.end = step
                said.append(now.sentence)
            if now is not None:
                now.seen = each.seen
        return said

    def _watched(self, values: Mapping[str, float]) -> Iterator[Watched]:
        for key, value in values.items():
            if not math.isfinite(value):
                continue
            kind, _, name = key.partition("/")
            if key.startswith(PREFIX):
                yield Watched(name, value, _OF_A_GAME.get(name.rpartition("/")[2], _ALIKE).format(value))
            elif kind == "health" and name.endswith("/rankme") and (of := values.get(f"{key[:-6]}of", 0)) >= FEW:
                yield self._directions(name.removesuffix("/rankme"), value, of)

    def _directions(self, name: str, rankme: float, of: float) -> Watched:
        first = self._first.setdefault(name, rankme)
        healthy = max(min(first, MANY) - 1, TENTH * (min(of, WIDE) - 1))
        since = f" (RankMe; {first:.1f} at first)" if first - rankme >= 0.1 else " (RankMe)"
        return Watched(f"{RANK}{name}", (rankme - 1) / healthy,
                       f"they are about {rankme:.1f} of {of:.0f}{since}{_BEYOND}")  # fmt: skip


def collapses(rows: Iterable[Mapping[str, float]]) -> list[Collapse]:
    """All of a run, in order of their beginning. rows: of `metrics.jsonl`."""
    return CollapseWatch(rows).seen
