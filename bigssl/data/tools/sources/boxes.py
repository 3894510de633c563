"""Boxes of objects in pictures: a JSON file as COCO has it, beside or in a folder of pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bigssl.data.errors import DataError
from bigssl.data.kinds import pictures
from bigssl.data.kinds.decode import IMAGES
from bigssl.data.shards import leftout
from bigssl.data.shards.leftout import LeftOut

FEW = 16  # lone .json files of a folder that are looked into
SLACK = 1.0  # pixels that a box may reach out of its picture unsaid: files round


class Boxed(NamedTuple):
    """What `file` says of a picture of width × height pixels: boxes [left, top, width, height] in these, and of each
    the name of its class and whether it is a crowd."""

    file: str
    width: int
    height: int
    boxes: tuple[tuple[float, ...], ...]
    labels: tuple[str, ...]
    crowd: tuple[bool, ...]

    def facts(self) -> dict[str, Any]:
        """As they stand in the json of a sample; `crowd` only where there is one."""
        crowd = {"crowd": list(self.crowd)} if any(self.crowd) else {}
        return {"boxes": [list(box) for box in self.boxes], "labels": list(self.labels)} | crowd

    def refuse_turned(self, data: bytes, where: str) -> None:
        """Raises DataError for a picture of another size, and where nothing tells which side of it was up."""
        seen = pictures.upright_size(data)
        if (seen.width, seen.height) != (self.width, self.height):
            turned = f" (turned by EXIF orientation {seen.orientation})" if seen.orientation != 1 else ""
            raise DataError(f"{where} is {seen.width}×{seen.height} pixels{turned}, {self.file} has boxes for "
                            f"{self.width}×{self.height}; they must be of the picture as it is shown")  # fmt: skip
        refuse_unclear(seen, where, "boxes")


def refuse_unclear(seen: pictures.Turned, where: str, what: str) -> None:
    """Raises DataError where EXIF turns a picture and its size is the same before and after."""
    if seen.orientation != 1 and (seen.orientation < 5 or seen.width == seen.height):
        raise DataError(f"{where} is turned by its EXIF orientation {seen.orientation}, and nothing tells whether its "
                        f"{what} are; store it upright, e.g. `mogrify -auto-orient`")  # fmt: skip


@dataclass
class BoxFile:
    """A file of boxes: what it says by picture, and what it holds that no picture can have."""

    path: Path
    pictures: dict[str, Boxed] = field(default_factory=dict)
    unused: list[tuple[str, str]] = field(default_factory=list)

    def of(self, names: Sequence[str], left_out: LeftOut) -> dict[str, Boxed]:
        """path -> boxes of those of the files `names` that are its pictures: paths end as the file writes them.

        left_out: is told which pictures have no boxes, which boxes no picture, and what of them was not taken. Raises
        DataError where a name may be of several files, or none is there.
        """
        shown = [name for name in names if is_picture(name)]
        found = matched(self.pictures, shown, f"{self.path}: picture")
        if not found:
            raise DataError(f"{self.path}: none of its {len(self.pictures)} pictures, such as "
                            f"{next(iter(self.pictures), '')!r}, is in the folder, which holds {len(shown)}; take the "
                            "file that belongs to it")  # fmt: skip
        for name in sorted(self.pictures.keys() - found.values()):
            left_out.add(leftout.UNSEEN, name)
        for name in (name for name in shown if name not in found):
            left_out.add(leftout.BARE, name)
        for reason, name in self.unused:
            left_out.add(reason, name)
        return {name: self.pictures[written] for name, written in found.items()}


def is_picture(name: str) -> bool:
    """By its extension."""
    return name.rpartition(".")[2].lower() in IMAGES


def matched(wanted: Mapping[str, object], names: Sequence[str], where: str) -> dict[str, str]:
    """path of `names` -> the one of `wanted` with which it ends. Raises DataError where several paths end so."""
    found: dict[str, str] = {}
    by_written: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        ends = ("/".join(parts[at:]) for at in range(len(parts)))
        written = next((end for end in ends if end in wanted), None)
        if written is None:
            continue
        if written in by_written:
            raise DataError(f"{where} {written!r} may be {by_written[written]!r} or {name!r}; write the path into it")
        by_written[written], found[name] = name, written
    return found


def find_boxes(root: Path, names: Sequence[str]) -> BoxFile | None:
    """The file of boxes among the files `names` below `root`: a JSON object with images, annotations and categories.
    None where there is none. Raises DataError where there are several."""
    stems = {name.rpartition(".")[0] for name in names if is_picture(name)}
    lone = [name for name in names if name.lower().endswith(".json") and name.rpartition(".")[0] not in stems]
    if not stems or not 0 < len(lone) <= FEW:
        return None
    found = {name: value for name in lone if _is_coco(value := _json(root / name))}
    if len(found) > 1:
        raise DataError(f"source {root} holds {len(found)} files of boxes ({', '.join(found)}); pack the folder of "
                        f"pictures of each by itself, e.g. with --boxes {root / next(iter(found))}")  # fmt: skip
    return next((_boxes(root / name, value) for name, value in found.items()), None)


def read_boxes(path: Path) -> BoxFile:
    """A file of boxes. Raises DataError, and OSError where it cannot be read."""
    value = _json(path)
    if not _is_coco(value):
        lists = "images (id, file_name, width, height), annotations (image_id, category_id, bbox) and categories"
        raise DataError(f"--boxes {path}: not what COCO writes: a JSON object with the lists {lists}")
    return _boxes(path, value)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def _is_coco(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), list) and all(isinstance(each, dict) for each in value[name][:1])
        for name in ("images", "annotations", "categories")
    )


def _boxes(path: Path, coco: dict[str, Any]) -> BoxFile:
    try:
        classes = {each["id"]: str(each["name"]) for each in coco["categories"]}
        images = {each["id"]: (_path(each["file_name"]), int(each["width"]), int(each["height"]))
                  for each in coco["images"]}  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: images need id, file_name, width and height, categories id and name ({error!r})"
                        ) from None  # fmt: skip
    names = [name for name, _, _ in images.values()]
    if len(names) != len(coco["images"]) or len(set(names)) != len(names):
        raise DataError(f"{path}: {len(coco['images'])} images with {len(images)} ids and {len(set(names))} file "
                        "names; each must have its own")  # fmt: skip
    file, found = BoxFile(path), {key: ([], [], []) for key in images}  # type: ignore[var-annotated]
    for number, each in enumerate(coco["annotations"]):
        where = f"annotation {each.get('id', number)}"
        if each.get("image_id") not in images:
            file.unused.append((leftout.LOOSE, where))
            continue
        name, width, height = images[each["image_id"]]
        box = _box(each, f"{where} of {name}", (width, height), file)
        if box is not None:
            kind = classes.get(each.get("category_id"))
            if kind is None:
                raise DataError(f"{path}: {where}: category_id {each.get('category_id')!r} is none of {len(classes)} "
                                "categories")  # fmt: skip
            for part, value in zip(found[each["image_id"]], (box, kind, bool(each.get("iscrowd"))), strict=True):
                part.append(value)
    for key, (name, width, height) in images.items():
        file.pictures[name] = Boxed(str(path), width, height, *map(tuple, found[key]))
    return file


def _path(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _box(annotation: Mapping[str, Any], where: str, size: tuple[int, int], file: BoxFile) -> tuple[float, ...] | None:
    """The box within the picture; None for one without area. Raises DataError."""
    given = annotation.get("bbox")
    if not isinstance(given, list) or len(given) != 4 or not all(
        isinstance(value, int | float) and math.isfinite(value) for value in given
    ):  # fmt: skip
        raise DataError(f"{file.path}: {where}: bbox is {json.dumps(given)[:60]}; four numbers are needed: left, top, "
                        "width, height")  # fmt: skip
    if min(given[2:]) <= 0:
        file.unused.append((leftout.FLAT, where))
        return None
    low = [max(0.0, value) for value in given[:2]]
    high = [min(float(side), value + length) for side, value, length in zip(size, given[:2], given[2:], strict=True)]
    if min(high[0] - low[0], high[1] - low[1]) <= 0:
        raise DataError(f"{file.path}: {where}: bbox {given} lies outside of the picture, {size[0]}×{size[1]} pixels; "
                        "left, top, width and height in pixels are needed")  # fmt: skip
    if max(-min(given[:2]), given[0] + given[2] - size[0], given[1] + given[3] - size[1]) > SLACK:
        file.unused.append((leftout.CUT, where))
    if [*low, *high] == [given[0], given[1], given[0] + given[2], given[1] + given[3]]:
        return tuple(given)
    return (*low, high[0] - low[0], high[1] - low[1])
