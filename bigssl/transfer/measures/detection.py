"""Average precision of object detection as COCO defines it (Lin et al. 2014; its evaluation server, area "all", at most
100 detections of a class in a picture), from matches of single pictures that can be pooled in any way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # detections of a class in a picture


class Boxes(NamedTuple):
    """Of one picture. boxes: float64 [N, 4], left, top, width, height; classes: int64 [N]; scores: of detections,
    float64 [N]; crowd: of truth, bool [N]: what lies in it is neither right nor wrong."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None
    crowd: np.ndarray | None = None


class Matched(NamedTuple):
    """Detections of one picture. classes: int64 [D]; scores: float64 [D]; right, ignored: bool [D, T] at the T
    thresholds of overlap; truths: int64 [C], how many boxes of each class there are to be found."""

    classes: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    truths: np.ndarray


def overlaps(found: np.ndarray, wanted: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """float64 [N, M]: intersection over union of boxes [N, 4] and [M, 4] (left, top, width, height); over the box
    found, where the one that is wanted is a `crowd` (bool [M])."""
    low = np.maximum(found[:, None, :2], wanted[None, :, :2])
    high = np.minimum(found[:, None, :2] + found[:, None, 2:], wanted[None, :, :2] + wanted[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    sizes, others = found[:, 2:].prod(-1)[:, None], wanted[:, 2:].prod(-1)[None]
    whole = sizes + others - shared
    whole = whole if crowd is None else np.where(crowd[None], sizes, whole)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def match(found: Boxes, truth: Boxes, classes: int) -> Matched:
    """Which detections are right: the best scored first, each takes the truth of its class that it overlaps most and
    that none before it took; boxes of a crowd only where no other fits, and any number of times."""
    assert found.scores is not None
    crowd = np.zeros(len(truth.boxes), bool) if truth.crowd is None else truth.crowd
    parts = []
    for name in np.unique(found.classes).tolist():
        mine = np.flatnonzero(found.classes == name)
        mine = mine[np.argsort(-found.scores[mine], kind="stable")][:MOST]
        theirs = np.flatnonzero(truth.classes == name)
        theirs = theirs[np.argsort(crowd[theirs], kind="stable")]
        shared = overlaps(found.boxes[mine], truth.boxes[theirs], crowd[theirs])
        outcome = [_greedy(shared, crowd[theirs], threshold) for threshold in THRESHOLDS]
        parts.append((mine, np.stack([right for right, _ in outcome], 1), np.stack([free for _, free in outcome], 1)))
    order = np.concatenate([mine for mine, _, _ in parts]) if parts else np.zeros(0, np.int64)
    none = [np.zeros((0, len(THRESHOLDS)), bool)]
    return Matched(
        found.classes[order].astype(np.int64), found.scores[order].astype(np.float64),
        np.concatenate(none + [right for _, right, _ in parts]), np.concatenate(none + [free for _, _, free in parts]),
        np.bincount(truth.classes[~crowd].astype(np.int64), minlength=classes),
    )  # fmt: skip


def _greedy(shared: np.ndarray, crowd: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(right, ignored), bool [D], of detections in the order of their scores; of equal overlaps the last truth."""
    right, ignored = np.zeros(len(shared), bool), np.zeros(len(shared), bool)
    free, close = np.ones(len(crowd), bool), shared >= min(threshold, 1 - 1e-10)
    for number in np.flatnonzero(close.any(1)).tolist():
        row = shared[number]
        for among in (free & ~crowd, crowd):
            fits = np.flatnonzero(among & close[number])
            if len(fits):
                best = fits[::-1][np.argmax(row[fits][::-1])]
                free[best] = False
                right[number], ignored[number] = not crowd[best], crowd[best]
                break
    return right, ignored


def average_precisions(matched: Sequence[Matched]) -> np.ndarray:
    """float64 [T, C]: average precision at each threshold and of each class, of all pictures together; NaN of a class
    that has no truth in them. Detections of equal scores count in the order of the pictures."""
    truths = np.sum([each.truths for each in matched], axis=0)
    found = np.full((len(THRESHOLDS), len(truths)), np.nan)
    found[:, truths > 0] = 0.0
    classes, scores = (np.concatenate([each[part] for each in matched]) for part in (0, 1))
    right, ignored = (np.concatenate([each[part] for each in matched]) for part in (2, 3))
    order = np.lexsort((-scores, classes))
    for name in np.flatnonzero(truths).tolist():
        rows = order[np.searchsorted(classes[order], name) : np.searchsorted(classes[order], name, side="right")]
        if len(rows):
            found[:, name] = _areas(right[rows], ~right[rows] & ~ignored[rows], int(truths[name]))
    return found


def _areas(right: np.ndarray, wrong: np.ndarray, truths: int) -> np.ndarray:
    """float64 [T], of bool [D, T]: the mean of the highest precision at each of 101 recalls or above it."""
    hits, misses = np.cumsum(right, axis=0, dtype=np.float64), np.cumsum(wrong, axis=0, dtype=np.float64)
    recall, precision = hits / truths, hits / (hits + misses + np.spacing(1))
    highest = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    highest = np.concatenate([highest, np.zeros((1, len(THRESHOLDS)))])
    reached = np.stack([np.searchsorted(each, RECALLS, side="left") for each in recall.T], 1)  # [101, T]
    return np.asarray(np.take_along_axis(highest, reached, axis=0).mean(0))


def mean_ap(matched: Sequence[Matched]) -> float:
    """AP: the mean over thresholds .5, .55 ... .95 and over the classes that occur; NaN where none does."""
    return _mean(average_precisions(matched))


def mean_ap50(matched: Sequence[Matched]) -> float:
    """AP50: the same at the threshold .5 alone."""
    return _mean(average_precisions(matched)[:1])


def _mean(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")
