"""The detector: which cell answers for which box, what it is taught, what it says; boxes through the view and back."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.autograd import gradcheck

from bigssl.data.errors import DataError
from bigssl.data.kinds import augment
from bigssl.data.sample import Sample
from bigssl.transfer.dense.boxes import giou, nms
from bigssl.transfer.dense.detector import NONE, UNJUDGED, Wanted, assigned, detect_loss, detections
from bigssl.transfer.dense.heads import DetectHead
from bigssl.transfer.dense.seen import Frame, as_sizes, seen_boxes, seen_mask
from bigssl.transfer.measures.detection import overlaps


def wanted(boxes: list, classes: list[int], ignored: list[bool] | None = None) -> Wanted:
    return Wanted(torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(classes, dtype=torch.int64),
                  torch.tensor(ignored or [False] * len(classes), dtype=torch.bool))  # fmt: skip


def test_giou_is_the_overlap_less_what_lies_between() -> None:
    generator = torch.Generator().manual_seed(0)
    low, sides = torch.rand(2, 50, 2, generator=generator).double(), torch.rand(2, 50, 2, generator=generator).double()
    one, other = (torch.cat([a, a + b + 0.01], -1) for a, b in zip(low, sides, strict=True))
    overlap = overlaps(as_sizes(one.numpy()), as_sizes(other.numpy())).diagonal()
    around = (torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])).prod(-1).numpy()
    areas = [(each[:, 2:] - each[:, :2]).prod(-1).numpy() for each in (one, other)]
    union = sum(areas) / (1 + overlap)
    np.testing.assert_allclose(giou(one, other), overlap - (around - union) / around, rtol=1e-9)
    apart = torch.tensor([0.0, 0, 1, 1]).double(), torch.tensor([5.0, 5, 6, 6], dtype=torch.float64, requires_grad=True)
    assert giou(*apart).item() == pytest.approx(2 / 36 - 1) and gradcheck(lambda box: giou(apart[0], box), apart[1:])


def by_hand(boxes: np.ndarray, scores: list[float], classes: list[int], most: float) -> list[int]:
    left, kept = sorted(range(len(scores)), key=lambda at: -scores[at]), []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [at for at in left if classes[at] != classes[best]
                or overlaps(boxes[best : best + 1], boxes[at : at + 1])[0, 0] <= most]  # fmt: skip
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_nms_is_the_greedy_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.random((30, 2)) * 8, rng.random((30, 2)) * 8 + 1], 1)
    scores, classes = (rng.integers(0, 12, 30) / 12).tolist(), rng.integers(0, 2, 30).tolist()
    corners = torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
    found = nms(corners, torch.tensor(scores), torch.tensor(classes), 0.4)
    assert found.tolist() == by_hand(boxes, scores, classes, 0.4)


def test_a_cell_answers_for_the_smallest_box_around_it_and_each_box_has_one() -> None:
    """A view of 16 pixels with 4 × 4 cells: a box over all, a small one in the second cell of the second row, one
    between the cells' middles, a crowd at the bottom left."""
    boxes = [[0, 0, 16, 16], [4, 4, 8, 8], [14.5, 0.5, 15.5, 1.5], [0, 12, 8, 16]]
    found = assigned(wanted(boxes, [0, 1, 1, 0], [False, False, False, True]), (4, 4), 16).view(4, 4)
    assert found.tolist() == [[NONE, NONE, NONE, 2], [NONE, 1, 0, NONE], [NONE, 0, 0, NONE],
                              [UNJUDGED, UNJUDGED, NONE, NONE]]  # fmt: skip
    assert (assigned(wanted([], []), (4, 4), 16) == NONE).all()


def test_what_a_perfect_head_says_are_the_boxes_and_costs_next_to_nothing() -> None:
    boxes = [[2.0, 1, 9, 12], [10, 9, 15, 15]]
    true = wanted(boxes, [1, 0])
    grid, size = (4, 4), 16
    numbers = assigned(true, grid, size)
    logits, sides, central = torch.full((1, 2, 16), -20.0), torch.full((1, 4, 16), 0.5), torch.full((1, 16), -20.0)
    for cell in (numbers >= 0).nonzero()[:, 0].tolist():
        left, top, right, bottom = boxes[numbers[cell]]
        x, y = (cell % 4 + 0.5) * 4, (cell // 4 + 0.5) * 4
        sides[0, :, cell] = torch.tensor([x - left, y - top, right - x, bottom - y]) / 4
        logits[0, true.classes[numbers[cell]], cell], central[0, cell] = 20, 20
    outputs = (logits.view(1, 2, 4, 4), sides.view(1, 4, 4, 4), central.view(1, 4, 4))
    (found,) = detections(outputs, size)
    sure = found.scores > 0.5
    assert found.classes[sure].sort().values.tolist() == [0, 1]
    torch.testing.assert_close(found.boxes[sure][found.classes[sure].argsort()], torch.tensor(boxes)[[1, 0]])
    perfect = detect_loss(outputs, [true], size)
    moved = detect_loss((outputs[0], outputs[1] * 1.2, outputs[2]), [true], size)
    other = detect_loss((outputs[0].flip(1), *outputs[1:]), [true], size)
    assert perfect + 0.05 < moved and perfect + 1 < other


def test_a_head_learns_one_picture_by_heart_and_what_is_not_judged_teaches_nothing() -> None:
    torch.manual_seed(0)
    head, maps = DetectHead([6, 5], 2), [torch.randn(2, 6, 8, 8), torch.randn(2, 5, 4, 4)]
    true = [wanted([[4, 4, 20, 24], [18, 2, 30, 12]], [1, 0]), wanted([[0, 0, 9, 9]], [1])]
    optimizer = torch.optim.Adam(head.parameters(), 5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        detect_loss(head(maps), true, 32).backward()
        optimizer.step()
    for found, each in zip(detections(head(maps), 32), true, strict=True):
        best = [found.boxes[found.classes == name][0] for name in each.classes.tolist()]
        assert giou(torch.stack(best), each.boxes).min() > 0.7
    crowd = wanted([[0, 0, 32, 32]], [0], [True])
    logits = torch.randn(1, 2, 8, 8, requires_grad=True)
    detect_loss((logits, torch.ones(1, 4, 8, 8), torch.zeros(1, 8, 8)), [crowd], 32).backward()
    assert logits.grad is not None and not logits.grad.any()


def png(values: np.ndarray, orientation: int = 1) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(buffer, "PNG", **({"exif": exif} if orientation != 1 else {}))
    return buffer.getvalue()


def sample(width: int, height: int, orientation: int = 1, mask: np.ndarray | None = None, **facts: object) -> Sample:
    fields = {"png": png(np.zeros((height, width, 3), np.uint8), orientation), "json": json.dumps(facts).encode()}
    return Sample("k", fields | ({} if mask is None else {"mask.png": png(mask)}), 0, 0, "s.tar", "")


@pytest.mark.parametrize("size", [(40, 20), (20, 33), (17, 17)])
def test_boxes_go_through_the_view_and_back(size: tuple[int, int]) -> None:
    frame = Frame(*size, 16)
    boxes = np.array([[1.0, 2, 9, 12], [0, 0, *size]])
    np.testing.assert_allclose(frame.pictured(frame.viewed(boxes)), boxes)
    square = frame.pictured(np.array([[0.0, 0, 16, 16]]))[0]
    assert (square[2:] - square[:2]).max() == pytest.approx(min(size), rel=0.05)


def test_a_box_in_the_view_holds_the_pixels_that_it_held_in_the_picture() -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[4:14, 15:25] = 255
    frame = Frame(40, 20, 16)
    (left, top, right, bottom), = frame.viewed(np.array([[15.0, 4, 25, 14]]))
    view = augment.center(Image.fromarray(pixels), 16)[0] > 127
    ys, xs = view.nonzero()
    np.testing.assert_allclose([left, top, right, bottom], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=0.6)


def test_of_boxes_at_the_edge_only_those_are_asked_for_that_are_seen() -> None:
    """A picture of 40 × 20, of which the view shows columns 10 to 30."""
    boxes = [[12, 2, 10, 10], [6, 0, 10, 10], [2, 0, 10, 10], [0, 0, 5, 5], [10, 0, 20, 20]]
    seen = seen_boxes(sample(40, 20, boxes=boxes, labels=list("abcde"), crowd=[False] * 4 + [True]), boxes="boxes",
                      labels="labels", size=16)  # fmt: skip
    assert seen.labels == ("a", "b", "c", "e") and seen.ignored.tolist() == [False, False, True, True]
    assert seen.boxes.min() >= 0 and seen.boxes.max() <= 16
    truth = seen.truth({"a": 0, "b": 1, "c": 2, "e": 3})
    np.testing.assert_allclose(truth.boxes, [[12, 2, 10, 10], [10, 0, 6, 10], [10, 0, 2, 10], [10, 0, 20, 20]])


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "no list 'boxes' in its json; it has none"),
        ({"boxes": []}, "no list 'labels' in its json; it has boxes"),
        ({"boxes": [[0, 0, 1, 1]], "labels": []}, "1 boxes and 0 labels; each box needs one"),
        ({"boxes": [[0, 0, 0, 1]], "labels": ["a"]}, r"box \[0, 0, 0, 1\] of a picture of 8×6 pixels; allowed"),
        ({"boxes": [[4, 0, 6, 2]], "labels": ["a"]}, r"box \[4, 0, 6, 2\] of a picture of 8×6"),
        ({"boxes": [["a", 0, 6, 2]], "labels": ["a"]}, "box .'a', 0, 6, 2. of a picture"),
        ({"boxes": [[0, 0, 2, 2]], "labels": ["a"], "crowd": []}, "1 boxes and 0 values of crowd"),
    ],
)
def test_boxes_that_no_picture_has_are_named(facts: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        seen_boxes(sample(8, 6, **facts), boxes="boxes", labels="labels", size=4)


def test_masks_that_do_not_fit_are_named_and_pictures_count_as_they_are_shown() -> None:
    values = np.arange(48).reshape(6, 8).astype(np.uint8)
    with pytest.raises(DataError, match="mask.png is 8×6 pixels, its picture 6×8"):
        seen_mask(sample(8, 6, orientation=6, mask=values), field="mask.png", size=6)
    seen = seen_mask(sample(6, 8, orientation=6, mask=values), field="mask.png", size=6)
    np.testing.assert_array_equal(seen.values(), values[:, 1:7])
    assert 255 not in seen.classes and seen.classes == tuple(np.unique(values[:, 1:7]).tolist())
    with pytest.raises(DataError, match="no field mask.png; it has json, png"):
        seen_mask(sample(8, 6), field="mask.png", size=6)
