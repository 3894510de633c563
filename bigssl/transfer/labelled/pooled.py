"""Rows whose number is a measure of all queries together, with error bars by resampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from statistics import fmean, stdev
from typing import Any

import numpy as np

from bigssl.transfer.scores import ScoreRow

RESAMPLES = 100


@dataclass(frozen=True)
class PooledScore(ScoreRow):
    """A row whose number is a measure of all queries together, and no mean over them: mIoU, AP, F1, corpus BLEU, WER.

    Its number is the mean of the measure over the seeds. Standard errors are the deviation over `RESAMPLES` draws of as
    many groups with replacement, the same draws for all contenders (Efron 1979; paired, as in Koehn 2004). A draw of
    which there is no measure (no word in any transcript) says nothing of the deviation.

    Attributes:
        records: by contender, by seed, of each of the N queries what the measure needs.
        measure: of the records of some queries; one may occur several times.
        groups: what each of the N queries belongs to; different groups are independent.

    Raises:
        ValueError: another contender, none that is trained, or records of another number of queries.
    """

    records: Mapping[str, Sequence[Sequence[Any]]]
    measure: Callable[[Sequence[Any]], float]
    groups: Sequence[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {name: sorted({len(each) for each in seeds}) for name, seeds in self.records.items()}
        if any(each != [len(self.groups)] for each in sizes.values()):
            raise ValueError(f"{self.title}: {sizes} of {len(self.groups)} queries; allowed: one record of each query")

    @property
    def contenders(self) -> list[str]:
        return list(self.records)

    @property
    def queries(self) -> int:
        return len(self.groups)

    def mean(self, name: str) -> float:
        return self._means[name]

    def error(self) -> float:
        return self._deviation(self._resampled["trained"])

    def ahead(self, name: str) -> tuple[float, float]:
        drawn = zip(self._resampled["trained"], self._resampled[name], strict=True)
        return self.mean("trained") - self.mean(name), self._deviation([one - other for one, other in drawn])

    @cached_property
    def _means(self) -> dict[str, float]:
        return {name: fmean(map(self.measure, seeds)) for name, seeds in self.records.items()}

    @cached_property
    def _resampled(self) -> dict[str, list[float]]:
        draws = resamples(self.groups)
        return {name: [fmean(self.measure([each[row] for row in rows]) for each in seeds) for rows in draws]
                for name, seeds in self.records.items()}  # fmt: skip

    def _deviation(self, values: Sequence[float]) -> float:
        known = [value for value in values if isfinite(value)]
        return stdev(known) if len(set(self.groups)) > 1 and len(known) > 1 else inf


def resamples(groups: Sequence[str]) -> list[list[int]]:
    """`RESAMPLES` lists of rows: those of as many groups as there are, drawn with replacement by a fixed seed."""
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    parts = list(rows.values())
    drawn = np.random.default_rng(0).integers(len(parts), size=(RESAMPLES, len(parts)))
    return [[row for at in draw for row in parts[at]] for draw in drawn.tolist()]
