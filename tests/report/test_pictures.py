"""Grids of pictures: in files that say what they are, and the first, some and the last of them in the report."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from bigssl.report.html import render_report
from bigssl.report.pictures import SHOWN, WIDEST, read_grids, write_grid


def rows(size: int = 16, channels: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.integers(0, 256, (4, channels, size, size), np.uint8) for name in ("given", "made")}


def test_the_first_some_and_the_last_are_shown(tmp_path: Path) -> None:
    for step in (900, 100, 10_000, 300, 400, 500, 600, 700):
        write_grid(tmp_path, "a-b", step, rows(), "Seen & drawn.")
    (tmp_path / "pictures" / "a-b-000000950.png").write_bytes(b"half")  # of a disk that was full
    (tmp_path / "pictures" / "mine.png").write_bytes(b"a person's own")
    other = tmp_path / "other"
    write_grid(other, "late", 5, rows(), "Later.")
    found = read_grids(tmp_path, other)
    assert found.keys() == {"a-b", "late"} and found["a-b"][0].caption == "Rows: given, made. Seen & drawn."
    steps = [grid.step for grid in found["a-b"]]
    assert steps[0] == 100 and steps[-1] == 10_000 and len(steps) in (SHOWN - 1, SHOWN) and steps == sorted(steps)
    page = render_report(tmp_path)
    assert page.count("data:image/png;base64,") == len(steps) and "Seen &amp; drawn." in page


def test_one_channel_is_grey_and_a_wide_grid_is_made_smaller_for_the_page(tmp_path: Path) -> None:
    grey = rows(400, 1)
    path = write_grid(tmp_path, "wide", 0, grey, "")
    with Image.open(path) as whole:
        assert whole.size == (4 * 402 - 2, 2 * 402 - 2)
        assert np.array_equal(np.asarray(whole)[402:802, :400], grey["made"][0].repeat(3, 0).transpose(1, 2, 0))
    (grid,) = read_grids(tmp_path)["wide"]
    with Image.open(io.BytesIO(base64.b64decode(grid.data))) as shown:
        assert shown.width == WIDEST
