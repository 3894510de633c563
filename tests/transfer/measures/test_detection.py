"""Average precision against pycocotools, on detections with everything that its matching has a rule for."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bigssl.transfer.measures.detection import Boxes, average_precisions, match, mean_ap, mean_ap50, overlaps

CLASSES = 3


def picture(rng: np.random.Generator) -> tuple[Boxes, Boxes]:
    """(found, truth): detections near the truth, near each other and anywhere, scores of which many are equal, crowds,
    boxes that are equal, pictures with neither."""
    wanted, extra = int(rng.integers(0, 5)), int(rng.integers(0, 5))
    corners, sides = rng.integers(0, 40, (wanted, 2)), rng.integers(1, 30, (wanted, 2))
    truth = np.concatenate([corners, sides], 1).astype(float)
    truth = np.concatenate([truth, truth[: int(rng.integers(0, 2))]])  # twice the same
    classes = rng.integers(0, CLASSES, len(truth))
    near = np.repeat(np.arange(len(truth)), rng.integers(0, 4, len(truth)))
    found = truth[near] + rng.normal(0, rng.choice([0, 1, 4]), (len(near), 4))
    found[:, 2:] = np.clip(found[:, 2:], 1, None)
    found = np.concatenate([found, np.concatenate([rng.random((extra, 2)) * 40, 1 + rng.random((extra, 2)) * 20], 1)])
    names = np.concatenate([np.where(rng.random(len(near)) < 0.8, classes[near], rng.integers(0, CLASSES, len(near))),
                            rng.integers(0, CLASSES, extra)])  # fmt: skip
    return (Boxes(found, names.astype(np.int64), rng.integers(0, 6, len(found)) / 5),
            Boxes(truth, classes, crowd=rng.random(len(truth)) < 0.25))  # fmt: skip


def by_coco(pictures: list[tuple[Boxes, Boxes]]) -> np.ndarray:
    """Precision averaged over recalls, [T, C]; -1 of a class without truth."""
    truths = [
        {"image_id": at, "category_id": int(name), "bbox": box.tolist(), "area": float(box[2] * box[3]),
         "iscrowd": int(crowd)}
        for at, (_, truth) in enumerate(pictures)
        for box, name, crowd in zip(truth.boxes, truth.classes, truth.crowd, strict=True)
    ]  # fmt: skip
    found = [
        {"image_id": at, "category_id": int(name), "bbox": box.tolist(), "score": float(score)}
        for at, (found, _) in enumerate(pictures)
        for box, name, score in zip(found.boxes, found.classes, found.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": [{"id": at} for at in range(len(pictures))],
                        "annotations": [{"id": number + 1} | each for number, each in enumerate(truths)],
                        "categories": [{"id": name} for name in range(CLASSES)]}  # fmt: skip
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(found), "bbox")
        judge.params.imgIds, judge.params.areaRng, judge.params.areaRngLbl = (
            list(range(len(pictures))), [[0, 1e10]], ["all"])
        judge.evaluate()
        judge.accumulate()
    return np.asarray(judge.eval["precision"][:, :, :, 0, -1].mean(1))  # [T, R, K, A, M] -> [T, K]


@pytest.mark.parametrize("seed", range(12))
def test_average_precision_is_that_of_coco(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = [picture(rng) for _ in range(3 + 4 * seed)]
    wanted = by_coco(pictures)
    matched = [match(found, truth, CLASSES) for found, truth in pictures]
    np.testing.assert_allclose(np.nan_to_num(average_precisions(matched), nan=-1), wanted, atol=1e-12)
    there = wanted[wanted > -1]
    assert mean_ap(matched) == pytest.approx(there.mean() if there.size else math.nan, nan_ok=True)
    first = wanted[0][wanted[0] > -1]
    assert mean_ap50(matched) == pytest.approx(first.mean() if first.size else math.nan, nan_ok=True)


def test_only_a_hundred_detections_of_a_class_in_a_picture_count() -> None:
    many = Boxes(np.tile([0.0, 0, 9, 9], (150, 1)), np.zeros(150, np.int64), np.linspace(1, 0.5, 150))
    many.boxes[120] = [20, 20, 5, 5]
    truth = Boxes(np.array([[20.0, 20, 5, 5]]), np.zeros(1, np.int64), crowd=np.zeros(1, bool))
    assert len(match(many, truth, CLASSES).scores) == 100
    np.testing.assert_allclose(average_precisions([match(many, truth, CLASSES)])[:, 0], by_coco([(many, truth)])[:, 0])


def test_pictures_without_detections_and_without_truth() -> None:
    none = Boxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))
    one = Boxes(np.array([[0.0, 0, 4, 4]]), np.zeros(1, np.int64), np.ones(1), np.zeros(1, bool))
    assert math.isnan(mean_ap([match(one, none, CLASSES)]))
    assert mean_ap([match(none, one, CLASSES)]) == 0
    assert mean_ap([match(one, one, CLASSES)]) == pytest.approx(1)
    before, after = match(one, none, CLASSES), match(one, one, CLASSES)
    assert mean_ap([after, before]) == pytest.approx(1)  # equal scores: the order of the pictures decides
    assert mean_ap([before, after]) == pytest.approx(0.5)


def test_overlaps_of_boxes_beside_within_and_without_area() -> None:
    boxes = np.array([[0.0, 0, 4, 4], [4, 0, 4, 4], [1, 1, 2, 2], [1, 1, 0, 0]])
    wanted = [[1, 0, 0.25, 0], [0, 1, 0, 0], [0.25, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(overlaps(boxes, boxes), wanted)
    assert overlaps(boxes[2:3], boxes[:1], np.array([True])) == 1  # all of it lies in the crowd
