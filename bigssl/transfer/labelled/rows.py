"""From outcomes of trials to a row of the scorecard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from bigssl.transfer.labelled.pooled import PooledScore
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.scores import Point, Score, ScoreRow, deviation

Measure = Callable[[Sequence[Any]], float]


def scored(
    title: str, subject: str, found: Mapping[Trial, Any], groups: Sequence[str], *,
    fixed: Mapping[str, Any] | None = None, measure: Measure | None = None, weights: Tensor | None = None,
    **rest: Any,
) -> ScoreRow:  # fmt: skip
    """The row of an evaluation that was repeated: its numbers are those of the largest fraction.

    Args:
        found: by trial, of each of the N queries: its value [N] (hits or real values; sums over the parts of a query
            where there are `weights`), or with a `measure` its record.
        fixed: the same of baselines that need no trial ("majority", "blind", a "raw/WORDS" that learns nothing).
        measure: what makes one number of the records of all queries; None: the mean of the values.
        rest: further fields of `Score`: chance, unit, higher_is_better, names, facts, row.
    """
    last = max(trial.fraction for trial in found)
    seeds: dict[str, list[Any]] = {}
    for trial, result in found.items():
        if trial.fraction == last:
            seeds.setdefault(trial.contender, []).append(result)
    number = measure or (lambda values: _mean(values, weights))
    rest |= {"seeds": {name: [number(each) for each in results] for name, results in seeds.items()},
             "curve": _curve(found, number)}  # fmt: skip
    if measure is not None:
        records = {name: [each] for name, each in (fixed or {}).items()} | seeds
        return PooledScore(title, subject, records, measure, groups, **rest)
    values = {name: torch.stack([each.double() for each in results]).mean(0) for name, results in seeds.items()}
    return Score(title, subject, dict(fixed or {}) | values, groups, weights, **rest)


def _mean(values: Any, weights: Tensor | None) -> float:
    parts = float(len(values)) if weights is None else weights.double().sum().item()
    return float(values.double().sum().item() / parts)


def _curve(found: Mapping[Trial, Any], number: Measure) -> list[Point]:
    parts: dict[float, dict[str, list[float]]] = {}
    samples: dict[float, int] = {}
    for trial, result in found.items():
        samples.setdefault(trial.fraction, len(trial.rows))
        parts.setdefault(trial.fraction, {}).setdefault(trial.contender, []).append(number(result))
    return [Point(fraction, samples[fraction], {name: (fmean(each), deviation(each)) for name, each in numbers.items()})
            for fraction, numbers in sorted(parts.items())]  # fmt: skip
