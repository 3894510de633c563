"""What the fixed view of evaluation, the middle square of a picture, shows of its mask and of its boxes."""

from __future__ import annotations

import math
import zlib
from typing import Any, NamedTuple

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.kinds import augment, decode, pictures
from bigssl.data.sample import Sample
from bigssl.transfer.features import metadata
from bigssl.transfer.measures.detection import Boxes
from bigssl.transfer.measures.iou import IGNORED

HALF = 0.5  # share of a box that has to be seen for it to be asked for
SLACK = 1.0  # pixels that a box may reach out of its picture, as rounding makes it


class SeenMask(NamedTuple):
    """The classes of the pixels of a view, packed; classes: those that occur, without the one that is not judged."""

    packed: bytes
    size: int
    classes: tuple[int, ...]

    def values(self) -> np.ndarray:
        """uint8 [size, size]."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.size, self.size)


def seen_mask(sample: Sample, *, field: str, size: int) -> SeenMask:
    """Of the mask in a `field` of the sample, each pixel of the view the nearest one. Raises DataError: none there, one
    of another size than its picture, none of whose pixels is judged where the view is."""
    values = decode.mask(decode.field(sample, (field,)))
    shown = pictures.upright_size(decode.field(sample, decode.IMAGES))
    if values.shape != (shown.height, shown.width):
        raise DataError(f"{field} is {values.shape[1]}×{values.shape[0]} pixels, its picture "
                        f"{shown.width}×{shown.height}; a mask has the size of the picture as it is shown")
    view = augment.center_mask(values, size)
    classes = tuple(number for number in np.unique(view).tolist() if number != IGNORED)
    return SeenMask(zlib.compress(view.tobytes(), 1), size, classes)


class Frame(NamedTuple):
    """How a picture of width × height pixels lies in a view of `size` a side."""

    width: int
    height: int
    size: int

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        middle = augment.middle(self.width, self.height, self.size)
        scale = np.array([middle.width / self.width, middle.height / self.height] * 2)
        return scale, np.array([*middle.box[:2]] * 2, dtype=np.float64)

    def viewed(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] (left, top, right, bottom) in pixels of the picture -> of the view; they may reach out."""
        scale, offset = self._affine()
        return np.asarray(boxes * scale - offset)

    def pictured(self, boxes: np.ndarray) -> np.ndarray:
        """The way back."""
        scale, offset = self._affine()
        return np.asarray((boxes + offset) / scale)


class SeenBoxes(NamedTuple):
    """The boxes that a view shows. boxes: float64 [N, 4] (left, top, right, bottom) in pixels of the view, cut at its
    edges; labels: their classes; ignored: bool [N], crowds, and those of which less than half is seen: nobody is asked
    for them, and who finds them is not wrong."""

    frame: Frame
    boxes: np.ndarray
    labels: tuple[str, ...]
    ignored: np.ndarray

    def truth(self, numbers: dict[str, int]) -> Boxes:
        """The same to be found, in pixels of the picture. numbers: of the classes."""
        return Boxes(as_sizes(self.frame.pictured(self.boxes)),
                     np.array([numbers[label] for label in self.labels], np.int64), crowd=self.ignored)  # fmt: skip


def as_sizes(corners: np.ndarray) -> np.ndarray:
    """[N, 4] left, top, right, bottom -> left, top, width, height."""
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)


def seen_boxes(sample: Sample, *, boxes: str, labels: str, size: int) -> SeenBoxes:
    """Of the metadata fields `boxes` ([left, top, width, height] each, in pixels of the picture as it is shown) and
    `labels`, and of `crowd` where there is one. Raises DataError: none there, or boxes that no picture has."""
    facts = metadata(sample)
    shown = pictures.upright_size(decode.field(sample, decode.IMAGES))
    frame = Frame(shown.width, shown.height, size)
    sizes, names = _checked(facts, boxes, labels, frame)
    crowd = np.array(facts.get("crowd", [False] * len(names)), bool)
    if len(crowd) != len(names):
        raise DataError(f"{len(names)} boxes and {len(crowd)} values of crowd; each box needs one")
    corners = np.concatenate([sizes[:, :2], sizes[:, :2] + sizes[:, 2:]], 1)
    whole = frame.viewed(corners)
    inside = np.clip(whole, 0, size)
    share = as_sizes(inside)[:, 2:].prod(1) / as_sizes(whole)[:, 2:].prod(1)
    seen = share > 0
    return SeenBoxes(frame, inside[seen], tuple(name for name, there in zip(names, seen, strict=True) if there),
                     (crowd | (share < HALF))[seen])  # fmt: skip


def _checked(facts: dict[str, Any], boxes: str, labels: str, frame: Frame) -> tuple[np.ndarray, list[str]]:
    for name in (boxes, labels):
        if not isinstance(facts.get(name), list):
            there = ", ".join(sorted(facts)) or "none"
            raise DataError(f"no list {name!r} in its json; it has {there} (`bigssl shards pack --boxes FILE` adds it)")
    found, names = facts[boxes], [str(name) for name in facts[labels]]
    if len(found) != len(names):
        raise DataError(f"{len(found)} {boxes} and {len(names)} {labels}; each box needs one")
    for box in found:
        good = isinstance(box, list) and len(box) == 4 and all(
            isinstance(value, int | float) and math.isfinite(value) for value in box)  # fmt: skip
        left, top, width, height = box if good else (0, 0, 0, 0)
        if not (min(width, height) > 0 and min(left, top) >= -SLACK and left + width <= frame.width + SLACK
                and top + height <= frame.height + SLACK):  # fmt: skip
            raise DataError(f"box {box!r:.80} of a picture of {frame.width}×{frame.height} pixels; allowed: left, top, "
                            "width, height, above 0 and within the picture")  # fmt: skip
    return np.array(found, np.float64).reshape(-1, 4), names
