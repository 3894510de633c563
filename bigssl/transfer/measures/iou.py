"""Mean intersection over union of semantic segmentation (Everingham et al. 2015), from counts that add up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

IGNORED = 255  # of a mask: a pixel that is not judged, as in Pascal VOC and ADE20K


def class_counts(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """int64 [3, classes] of one picture: the pixels of each class that are right, predicted, and true.

    Args:
        predicted: integers [...] below `classes`, or `IGNORED`, a class that is none of them: never right.
        truth: the same shape, where `IGNORED` is not judged.
    Raises:
        ValueError: other shapes, or other numbers.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"{predicted.shape} predictions for {truth.shape} pixels; allowed: one of each pixel")
    judged = truth != IGNORED
    found, wanted = predicted[judged].astype(np.int64), truth[judged].astype(np.int64)
    for what, values in (("predicted", found[found != IGNORED]), ("true", wanted)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"{what} classes from {values.min()} to {values.max()}; allowed: 0 to {classes - 1}")
    right = wanted[found == wanted]
    named = found[found != IGNORED]
    return np.stack([np.bincount(values, minlength=classes) for values in (right, named, wanted)])


def mean_iou(counts: Sequence[np.ndarray]) -> float:
    """Mean over classes of right / (predicted + true - right), of all pictures together; counts: those of each.

    A class that neither truth nor predictions have does not count. NaN where there is none at all.
    """
    right, predicted, true = np.sum(counts, axis=0)
    union = predicted + true - right
    return float((right[union > 0] / union[union > 0]).mean()) if union.any() else float("nan")
