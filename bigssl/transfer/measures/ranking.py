"""What was called anomalous, or scored (steps of a series, tokens), against what is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class StepCounts(NamedTuple):
    """Steps: rightly called anomalous, wrongly called, missed."""

    hits: int
    alarms: int
    missed: int

    @classmethod
    def of(cls, truth: np.ndarray, called: np.ndarray) -> StepCounts:
        """truth, called: bool [T]."""
        return cls(int((truth & called).sum()), int((~truth & called).sum()), int((truth & ~called).sum()))

    @property
    def f1(self) -> float:
        """2 · hits / (2 · hits + alarms + missed); 0 where nothing is anomalous and nothing was called so."""
        total = 2 * self.hits + self.alarms + self.missed
        return 2 * self.hits / total if total else 0.0


def marked_stretches(truth: np.ndarray) -> list[tuple[int, int]]:
    """(first, stop) of each stretch of True in bool [T], in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], truth, [False]]).astype(np.int8)))
    return [(int(first), int(stop)) for first, stop in edges.reshape(-1, 2)]


def point_adjusted(truth: np.ndarray, called: np.ndarray) -> np.ndarray:
    """bool [T]: an anomalous stretch of which one step was called counts as called whole (Xu et al. 2018).

    It flatters: of long stretches a random score finds one step nearly always (Kim et al. 2022).
    """
    found = called.copy()
    for first, stop in marked_stretches(truth):
        found[first:stop] |= called[first:stop].any()
    return found


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under the curve of precision over recall, as the sum of (recall_k − recall_{k−1}) · precision_k over the
    different scores, falling; equal scores are one threshold.

    truth bool [T] with one True or more; scores [T], higher where an anomaly is more likely.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each run of equal scores
    precision, found = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(found, prepend=0.0) * precision))


def area_under_curve(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: how likely one that is true has a higher score than one that is not, equal ones
    counting half (Mann and Whitney 1947).

    truth bool [T] with a True and a False; scores [T].
    """
    from scipy.stats import rankdata  # a quarter of a second, which every start would pay

    ranks, hits = rankdata(scores), int(truth.sum())
    return float((ranks[truth].sum() - hits * (hits + 1) / 2) / (hits * (len(truth) - hits)))
