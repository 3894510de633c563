"""Adds the column `group` to the emoji table: what must fall on one side of the split, named by its first code.

    python launch/group_demo.py captions.tsv IMAGES > grouped.tsv      (IMAGES: folder of CODE.DESIGN.jpg; seconds)

Two emoji belong together, directly or through others, when
- they have the same base glyph: that of a skin tone, a gender or a ZWJ sequence is the first of its parts without
  them, and man, woman and person are one glyph; or
- a picture of the one is a picture of the other in any design: the same bytes, or a centred cosine above TWINS.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TWINS = 0.965  # below the .97 that tests/data/test_demo.py allows nobody to pass: means differ a little from set to set
MODIFIERS = {"fe0f", "2640", "2642", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
ONE_GLYPH = (  # code points that differ in gender, age or number of people alone
    ("1f9d1", "1f468", "1f469"), ("1f9d2", "1f466", "1f467"), ("1f9d3", "1f474", "1f475"), ("1fac5", "1f934", "1f478"),
    ("1f385", "1f936"), ("1f483", "1f57a"), ("1f930", "1fac3", "1fac4"), ("1f46b", "1f46c", "1f46d"),
)  # fmt: skip
ALIASES = {code: codes[0] for codes in ONE_GLYPH for code in codes}


def base_glyph(code: str) -> str:
    """"1f469-1f3fd-200d-1f692" -> "1f9d1"; "1f1e9-1f1ea" (a flag) stays."""
    first = [part for part in code.split("-200d-")[0].split("-") if part not in MODIFIERS]
    return "-".join(ALIASES.get(part, part) for part in first) or code


def similarity(pictures: np.ndarray) -> np.ndarray:
    """Largest centred cosine, float32 [N, N], of uint8 [N, 64, 64, 3]: as they are and at half the size, less their own
    mean or the mean picture."""
    values = pictures.astype(np.float32)
    half = values.reshape(len(values), 32, 2, 32, 2, 3).mean((2, 4))
    best = np.full((len(values), len(values)), -1, np.float32)
    for rows in (values.reshape(len(values), -1), half.reshape(len(half), -1)):
        for mean in (rows.mean(1, keepdims=True), rows.mean(0)):
            centred = rows - mean
            centred /= np.linalg.norm(centred, axis=1, keepdims=True) + 1e-6
            np.maximum(best, centred @ centred.T, out=best)
    return best


def twins(codes: Sequence[str], images: Path) -> Iterator[tuple[str, str]]:
    """Pairs of different codes of which two pictures are near the same."""
    files = [(code, path) for code in codes for path in sorted(images.glob(f"{code}.*.jpg"))]
    pictures = np.stack([np.asarray(Image.open(path).convert("RGB")) for _, path in files])
    for i, j in np.argwhere(np.triu(similarity(pictures), 1) > TWINS):
        if files[i][0] != files[j][0]:
            yield files[i][0], files[j][0]


def components(names: Sequence[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each name -> the first name that it is connected with (union-find)."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for a, b in pairs:
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    return {name: root(name) for name in names}


def main(table: str, images: str) -> None:
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    codes = [row["code"] for row in rows]
    by_glyph = defaultdict(list)
    for code in codes:
        by_glyph[base_glyph(code)].append(code)
    same_glyph = [(members[0], other) for members in by_glyph.values() for other in members[1:]]
    groups = components(codes, [*same_glyph, *twins(codes, Path(images))])
    out = csv.DictWriter(sys.stdout, [*rows[0], "group"], delimiter="\t", lineterminator="\n")
    out.writeheader()
    out.writerows(row | {"group": groups[row["code"]]} for row in rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
