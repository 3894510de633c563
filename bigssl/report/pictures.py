"""Pictures for a person: what a network was given, what it makes of it, and the truth, at several steps of a run.

    RUN/pictures/NAME-STEP.png      rows given, made and truth of the same few samples; its caption is in the file
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bigssl.files import write_atomic

FOLDER = "pictures"
CAPTION = "caption"  # a text of the PNG
GAP = 2  # white pixels between pictures
SHOWN = 5  # steps of a series in the report
WIDEST = 1200  # pixels of a grid in the report; the file has all
_NAME = re.compile(r"(?P<name>.+)-(?P<step>\d{9,})\.png")


def write_grid(folder: Path, name: str, step: int, rows: Mapping[str, np.ndarray], caption: str) -> Path:
    """Writes `folder/pictures/NAME-STEP.png` atomically, in place of an older one, and returns its path.

    Args:
        step: of the run; names sort by it.
        rows: by what they are, uint8 [K, C, H, W] with C of 1 or 3, all alike.
    """
    picture = Image.fromarray(_grid([_coloured(row) for row in rows.values()]))
    about, data = PngInfo(), io.BytesIO()
    about.add_itxt(CAPTION, f"Rows: {', '.join(rows)}. {caption}")
    picture.save(data, "PNG", pnginfo=about, optimize=True)
    path = folder / FOLDER / f"{name}-{step:09d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data.getvalue())
    return path


def _coloured(pictures: np.ndarray) -> np.ndarray:
    """[K, C, H, W] -> [K, H, W, 3]"""
    return np.repeat(pictures, 4 - pictures.shape[1], axis=1)[:, :3].transpose(0, 2, 3, 1)


def _grid(rows: list[np.ndarray]) -> np.ndarray:
    """Pictures [K, H, W, 3] of each row, with gaps between -> [h, w, 3]."""
    count, height, width, _ = rows[0].shape
    grid = np.full((len(rows) * (height + GAP) - GAP, count * (width + GAP) - GAP, 3), 255, np.uint8)
    for down, row in enumerate(rows):
        for right, picture in enumerate(row):
            top, left = down * (height + GAP), right * (width + GAP)
            grid[top : top + height, left : left + width] = picture
    return grid


@dataclass(frozen=True)
class Grid:
    """step: of the run. caption: in sentences. data: the PNG in base64, of WIDEST pixels at most."""

    step: int
    caption: str
    data: str


def read_grids(*folders: Path) -> dict[str, list[Grid]]:
    """By name, the first, some between and the last of what `write_grid` wrote in these folders, by step; of one that
    is in several of them, that of the last folder. Files that are no such pictures are passed over."""
    paths: dict[str, dict[int, Path]] = {}
    for folder in folders:
        for path in sorted((folder / FOLDER).glob("*.png")):
            if found := _NAME.fullmatch(path.name):
                paths.setdefault(found["name"], {})[int(found["step"])] = path
    grids = {name: [_read(step, steps[step]) for step in some_of(sorted(steps))] for name, steps in paths.items()}
    return {name: kept for name, each in grids.items() if (kept := [grid for grid in each if grid is not None])}


def some_of(steps: list[int]) -> list[int]:
    """SHOWN of them at most, spread evenly, the first and the last among them."""
    last = len(steps) - 1
    return [steps[place] for place in sorted({round(n * last / (SHOWN - 1)) for n in range(SHOWN)})]


def _read(step: int, path: Path) -> Grid | None:
    try:
        with Image.open(path) as picture:
            caption = str(picture.info.get(CAPTION, ""))
            if picture.width <= WIDEST:
                return Grid(step, caption, base64.b64encode(path.read_bytes()).decode())
            data = io.BytesIO()
            picture.thumbnail((WIDEST, WIDEST))
            picture.save(data, "PNG", optimize=True)
    except OSError:
        return None
    return Grid(step, caption, base64.b64encode(data.getvalue()).decode())
