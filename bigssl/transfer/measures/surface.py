"""VUS-PR, the volume under the surface of precision and recall over the width of a tolerant border (Paparrizos et al.
2022, "Volume Under the Surface").

A detector that is a few steps early or late is not wrong altogether. Anomalous stretches get a border of ℓ // 2 steps
on either side, in which a step d away from the stretch weighs √(1 − d / ℓ). For a threshold, with weights w (1 inside a
stretch) and the steps that are called:

    TP        = Σ w over the called ones           precision = TP / number called
    P         = anomalous steps + ½ Σ w over the called ones of the border
    recall    = min(TP / P, 1) · share of the bordered stretches (joined where they meet) with a called step

and the area for ℓ is Σ (recall_k − recall_{k−1}) · precision_k over thresholds. VUS-PR is its mean over ℓ = 0 … L. P
counts called steps of the border only, as the authors' programs have it (vus 0.0.6, TSB-AD): with it, numbers compare
with those that are published.
"""

from __future__ import annotations

import numpy as np

from bigssl.transfer.measures.ranking import marked_stretches

THRESHOLDS = 250


def vus_pr(truth: np.ndarray, scores: np.ndarray, widest: int, *, thresholds: int = THRESHOLDS) -> float:
    """Between 0 and 1, higher is better.

    Args:
        truth: bool [T] with one True or more.
        scores: [T], higher where an anomaly is more likely.
        widest: L, in steps: about a period of the series.
        thresholds: scores of so many evenly spaced ranks.
    """
    falling = np.sort(scores)[::-1]
    levels = falling[np.linspace(0, len(scores) - 1, thresholds).astype(int)]
    called = np.searchsorted(-falling, -levels, side="right")  # steps with such a score or a higher one
    order = np.argsort(-scores, kind="stable")
    inside = np.cumsum(truth[order])[called - 1]
    areas = [_area(truth, scores, order, called, levels, inside, width) for width in range(widest + 1)]
    return float(np.mean(areas))


def _area(
    truth: np.ndarray, scores: np.ndarray, order: np.ndarray, called: np.ndarray, levels: np.ndarray,
    inside: np.ndarray, width: int,
) -> float:  # fmt: skip
    caught = np.cumsum(bordered(truth, width)[order])[called - 1]
    positives = truth.sum() + (caught - inside) / 2
    highest = np.array([scores[first:stop].max() for first, stop in joined_stretches(truth, width // 2)])
    found = (highest[:, None] >= levels).mean(0)
    recall = np.minimum(caught / positives, 1) * found
    return float(np.sum(np.diff(recall, prepend=0.0) * caught / called))


def bordered(truth: np.ndarray, width: int) -> np.ndarray:
    """float64 [T]: 1 inside a stretch of bool [T], √(1 − d / width) at d ≤ width // 2 steps from it, the sum where two
    borders meet, 1 at most."""
    weights = truth.astype(np.float64)
    for first, stop in marked_stretches(truth):
        after = np.arange(stop, min(stop + width // 2, len(truth)))
        before = np.arange(max(first - width // 2, 0), first)
        weights[after] += np.sqrt(1 - (after - stop + 1) / max(width, 1))
        weights[before] += np.sqrt(1 - (first - before) / max(width, 1))
    return np.minimum(weights, 1)


def joined_stretches(truth: np.ndarray, border: int) -> list[tuple[int, int]]:
    """(first, stop) of the stretches of bool [T] with `border` steps on either side; those that share a step are
    one."""
    found: list[tuple[int, int]] = []
    for first, stop in marked_stretches(truth):
        begin, end = max(first - border, 0), min(stop + border, len(truth))
        if found and begin < found[-1][1]:
            begin = found.pop()[0]
        found.append((begin, end))
    return found
