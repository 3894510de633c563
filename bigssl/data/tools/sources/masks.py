"""Masks of pictures: pngs of class numbers, in a folder of their own or beside the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode, pictures
from bigssl.data.shards import leftout
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.tools.sources.base import read_file
from bigssl.data.tools.sources.boxes import is_picture, matched, refuse_unclear

FOLDERS = ("mask", "masks", "segmentation", "segmentations", "segmentationclass", "annotations", "labels")
PICTURES = ("image", "images", "img", "imgs", "jpegimages", "picture", "pictures", "photo", "photos", "frame", "frames",
            "input", "inputs", "rgb")  # folders beside those of masks
PLACES = ("beside", "none")
ENDS = ("_mask", "-mask", ".mask")  # of the names of masks beside pictures, before .png
LOOKED = 8  # masks whose values are looked at


class Masks(NamedTuple):
    """paths: picture -> its mask (relative ones below the same root, or absolute). own: files of the root that are
    masks, and no samples. said: what was found."""

    paths: dict[str, str]
    own: frozenset[str]
    said: str = ""


def find_masks(root: Path, names: Sequence[str], where: Path | str | None, left_out: LeftOut) -> Masks:
    """The masks of the pictures among the files `names` below `root`.

    where: a folder with a png of the name of each picture; "beside": NAME.png beside NAME.jpg is one; "none": there are
    none. Without it those called NAME_mask.png, and those in a folder called as in FOLDERS that are named as pictures
    are in one called as in PICTURES, or most of them as those in the folder around it. left_out: is told of masks
    without pictures, and of pictures without. Raises DataError where a name may mean several, no picture has one, or
    such a folder holds pictures of colours, or others than pngs.
    """
    if where == "none":
        return Masks({}, frozenset())
    doubt = ""
    if isinstance(where, Path):
        found = _of_folder(root, names, where)
    elif where == "beside":
        found = _beside(names) | _twins(names)
    else:
        guessed, doubt = _guessed(root, names)
        found = _beside(names) | guessed
    own = frozenset(found)
    shown = [name for name in names if is_picture(name) and name not in own]
    paths = _joined(found, shown)
    if where is not None and not paths:
        raise DataError(f"--masks {where}: no png there is named as one of the {len(shown)} pictures in {root}")
    if not paths:
        return Masks({}, frozenset(), doubt)
    for mask in sorted(found.keys() - paths.values()):
        left_out.add(leftout.UNMET, mask)
    for name in (name for name in shown if name not in paths):
        left_out.add(leftout.MASKLESS, name)
    return Masks(paths, own, "; ".join(filter(None, (_said(root, paths), doubt))))


def _beside(names: Sequence[str]) -> dict[str, str]:
    """mask -> stem of its picture, of all that are called as masks are, where one of them has a picture."""
    stems = {name.rpartition(".")[0] for name in names if is_picture(name)}
    found = {name: _bare(name) for name in names if _is_png(name) and _bare(name) != name.rpartition(".")[0]}
    return found if stems & set(found.values()) else {}


def _twins(names: Sequence[str]) -> dict[str, str]:
    """The same of pngs that are called as a picture of another kind."""
    stems = {name.rpartition(".")[0] for name in names if is_picture(name) and not _is_png(name)}
    return {name: stem for name in names if _is_png(name) and (stem := name.rpartition(".")[0]) in stems}


def _is_png(name: str) -> bool:
    return name.lower().endswith(".png")


def _of_folder(root: Path, names: Sequence[str], folder: Path) -> dict[str, str]:
    """mask -> how the name of its picture ends, of the pngs in a folder."""
    if not folder.is_dir():
        raise DataError(f"--masks {folder}: no such folder; allowed: a folder of pngs, `beside` or `none`")
    inside = folder.resolve().is_relative_to(root.resolve())
    if inside:
        within = folder.resolve().relative_to(root.resolve()).as_posix()
        return {name: _bare(name.removeprefix(f"{within}/")) for name in names if name.startswith(f"{within}/")
                and _is_png(name)}  # fmt: skip
    return {str(path.resolve()): _bare(path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*"))
            if _is_png(path.name)}  # fmt: skip


def _bare(name: str) -> str:
    stem = name.rpartition(".")[0]
    return next((stem.removesuffix(end) for end in ENDS if stem.endswith(end)), stem)


def _guessed(root: Path, names: Sequence[str]) -> tuple[dict[str, str], str]:
    """The same of the folders that are called as those of masks; and what to say of those that may be others. Raises
    DataError where they hold what is no mask: as pictures to learn from they would do harm unseen."""
    found: dict[str, str] = {}
    doubtful: list[str] = []
    for folder in _called(names):
        inside = [name for name in names if name.startswith(f"{folder}/") and is_picture(name)]
        if not inside or found.keys() & inside:
            continue
        ends = {name: _bare(name.removeprefix(f"{folder}/")) for name in inside}
        homes, most = _homes(folder, set(ends.values()), names)
        above = folder.rpartition("/")[0]
        if any(_of_pictures(home, folder) for home in homes) or (most and homes == {above}):
            _refuse_pictures(root, folder, inside, sorted(homes)[0])
            found |= ends
        elif most or any(_of_pictures(name.rpartition("/")[0], folder) for name in names if name.startswith(above)):
            doubtful.append(folder)
    doubtful = [folder for folder in doubtful if not any(name.startswith(f"{folder}/") for name in found)]
    said = (f"{doubtful[0]}: called as a folder of masks is, but taken for pictures, since nothing beside it is both "
            f"called and filled as pictures of theirs would be; if they are masks: --masks {root / doubtful[0]}, named "
            "as their pictures") if doubtful else ""  # fmt: skip
    return found, said


def _of_pictures(home: str, folder: str) -> bool:
    """Whether the part of a path that it has not in common with `folder` names pictures."""
    own = home.lower().split("/")
    common = len(commonprefix([own, folder.lower().split("/")]))
    return bool(set(own[common:]) & set(PICTURES))


def _called(names: Sequence[str]) -> list[str]:
    """Folders that are called as those of masks, and those below them."""
    folders = {name.rpartition("/")[0] for name in names}
    parts = [folder.split("/") for folder in folders if set(folder.lower().split("/")) & set(FOLDERS)]
    return sorted({"/".join(part[: at + 1]) for part in parts for at in range(len(part))
                   if set(FOLDERS) & {each.lower() for each in part[: at + 1]}})  # fmt: skip


def _homes(folder: str, ends: set[str], names: Sequence[str]) -> tuple[set[str], bool]:
    """Folders of the pictures whose paths end as in `ends`, those beside `folder` before others; and whether they are
    more than half, of these or of those."""
    above = folder.rpartition("/")[0]
    outside = {name.rpartition(".")[0] for name in names if is_picture(name) and not name.startswith(f"{folder}/")}
    for among in ({stem for stem in outside if stem.startswith(f"{above}/" * bool(above))}, outside):
        met = {(end, "/".join(parts[:at])) for stem in among for parts in [stem.split("/")] for at in range(len(parts))
               if (end := "/".join(parts[at:])) in ends}  # fmt: skip
        if met:
            return {home for _, home in met}, 2 * len({end for end, _ in met}) > min(len(ends), len(among))
    return set(), False


def _refuse_pictures(root: Path, folder: str, inside: Sequence[str], home: str) -> None:
    other = next((name for name in inside if not _is_png(name)), None)
    colour = None if other else next((name for name in inside[:LOOKED] if pictures.opened(
        read_file(root / name), None, "L").mode in ("RGB", "RGBA", "LA", "CMYK", "PA")), None)  # fmt: skip
    if other or colour:
        why = f"{other} is no png" if other else f"{colour} holds colours"
        raise DataError(f"{root}: {folder} looks like the masks of the pictures in {home or 'the folder'}, but {why}; "
                        "masks are pngs of class numbers: write them so, or pack it as pictures by --masks none")


def _joined(masks: dict[str, str], shown: Sequence[str]) -> dict[str, str]:
    """picture -> mask: of pictures whose paths end alike, those beside the folder of the mask."""
    stems = {name.rpartition(".")[0]: name for name in shown}
    found: dict[str, str] = {}
    by_place: dict[str, dict[str, str]] = {}
    for mask, end in masks.items():
        place = mask.rpartition(end)[0].rstrip("/").rpartition("/")[0]
        by_place.setdefault(place, {})[end] = mask
    for place, wanted in by_place.items():
        near = [stem for stem in stems if not place or stem.startswith(f"{place}/")]
        for among in (near, [stem for stem in stems if stems[stem] not in found]):
            for stem, end in matched(wanted, among, "mask of").items():
                found[stems[stem]] = wanted.pop(end)
    return found


def _said(root: Path, paths: dict[str, str]) -> str:
    """How many there are, and whether what looks like a class is the number of pixels that are not judged."""
    first, mask = next(iter(paths.items()))
    said = f"masks: {len(paths)} pictures have one, e.g. {mask!r} of {first!r}; --masks none does without"
    values: set[int] = set()
    for path in list(paths.values())[:LOOKED]:
        values |= set(np.unique(_decoded(read_file(root / path), path)).tolist())
    if values == {0, 255}:
        said += "; those looked at hold 0 and 255, which is no class but means not judged: write 1 where it is one"
    return said


def _decoded(data: bytes, where: str) -> np.ndarray:
    try:
        return decode.mask(data)
    except DataError as error:
        raise DataError(f"mask {where}: {error}") from error


def refuse_unfitting(picture: bytes, mask: bytes, where: str, mask_where: str) -> None:
    """Raises DataError for a mask that does not say of each pixel of its picture, as it is shown, its class."""
    height, width = _decoded(mask, mask_where).shape
    seen = pictures.upright_size(picture)
    if (seen.width, seen.height) != (width, height):
        turned = f" (turned by EXIF orientation {seen.orientation})" if seen.orientation != 1 else ""
        raise DataError(f"{mask_where} is {width}×{height} pixels, its picture {where} {seen.width}×{seen.height}"
                        f"{turned}; a mask has the size of the picture as it is shown")  # fmt: skip
    refuse_unclear(seen, where, "mask")
