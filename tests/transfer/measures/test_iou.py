"""Mean IoU against scikit-learn's Jaccard score."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from bigssl.transfer.measures.iou import IGNORED, class_counts, mean_iou


@pytest.mark.parametrize("seed", range(6))
def test_mean_iou_of_pooled_pictures_is_that_of_all_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 9))
    there = rng.choice(classes, int(rng.integers(1, classes + 1)), replace=False)  # some classes never occur
    pictures = [(rng.choice(there, shape), rng.choice(there, shape)) for shape in ((5, 7), (1, 1), (12, 3))]
    pictures = [(found, np.where(rng.random(true.shape) < 0.2, IGNORED, true)) for found, true in pictures]
    pooled = [np.concatenate([part.ravel() for part in parts]) for parts in zip(*pictures, strict=True)]
    judged = pooled[1] != IGNORED
    wanted = jaccard_score(pooled[1][judged], pooled[0][judged], average="macro")
    counts = [class_counts(found, true, classes) for found, true in pictures]
    assert mean_iou(counts) == pytest.approx(wanted, abs=1e-12)


def test_what_is_not_judged_and_what_is_no_class() -> None:
    truth = np.array([0, 1, IGNORED, 1], np.uint8)
    assert class_counts(np.array([0, 1, 2, 1]), truth, 3).tolist() == [[1, 2, 0], [1, 2, 0], [1, 2, 0]]
    assert mean_iou([class_counts(np.array([IGNORED, 1, 1, 1]), truth, 3)]) == 0.5  # no class at all: class 0 is lost
    assert math.isnan(mean_iou([class_counts(truth[2:3], truth[2:3], 3)]))
    with pytest.raises(ValueError, match="true classes from 0 to 1; allowed: 0 to 0"):
        class_counts(np.zeros(4, int), truth, 1)
    with pytest.raises(ValueError, match="one of each pixel"):
        class_counts(np.zeros(3, int), truth, 2)
