"""Tiles of a picture with gaps between them, and what keeps a network from telling their places by other than what they
show (Doersch et al. 2015, arXiv 1505.05192; Noroozi and Favaro 2016, arXiv 1603.09246).

    picture ── random square ── resized, equally in both directions ── grid with gaps ── each tile moved by chance
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from bigssl.data.errors import DataError

LEAST = 4
"""Pixels of a picture, a side, of which a tile is made at least: fewer show nothing."""


@dataclass(frozen=True)
class TileGrid:
    """`count` × `count` tiles of `side` pixels, `gap` pixels apart, each moved by up to `jitter` pixels either way in
    both directions."""

    count: int
    side: int
    gap: int
    jitter: int

    @classmethod
    def of_shares(cls, count: int, side: int, gap: float, jitter: float) -> TileGrid:
        """gap, jitter: as shares of a tile's side."""
        return cls(count, side, round(gap * side), round(jitter * side))

    @classmethod
    def within(cls, whole: int, count: int, gap: float, jitter: float) -> TileGrid:
        """The largest that a square of `whole` pixels holds; its tiles have 0 pixels where there is none."""
        sides = range(whole // count, 0, -1)
        fitting = (grid for side in sides if (grid := cls.of_shares(count, side, gap, jitter)).whole <= whole)
        return next(fitting, cls(count, 0, 0, 0))

    @property
    def whole(self) -> int:
        """Side in pixels of the square that holds all tiles wherever they are moved."""
        return self.count * self.side + (self.count - 1) * self.gap + 2 * self.jitter

    @property
    def nearest(self) -> int:
        """Pixels between two neighbours at least; below 0 they may overlap."""
        return self.gap - 2 * self.jitter

    def cut(self, square: np.ndarray, place: int, rng: np.random.Generator) -> np.ndarray:
        """[whole, whole, C] -> [C, side, side], the tile at `place` (0 to count² - 1, row by row), moved by chance."""
        corners = np.array(divmod(place, self.count)) * (self.side + self.gap) + self.jitter
        top, left = (corners + rng.integers(-self.jitter, self.jitter, 2, endpoint=True)).tolist()
        tile = square[top : top + self.side, left : left + self.side]
        return np.ascontiguousarray(tile.transpose(2, 0, 1))

    def square(self, pixels: np.ndarray, min_scale: float, rng: np.random.Generator) -> np.ndarray:
        """A random square of a picture [H, W, C] at the size of the grid, uint8 [whole, whole, C].

        Its area is uniform in [min_scale, 1] of the largest one, but large enough for `LEAST` pixels a tile.

        Raises:
            DataError: none is.
        """
        least = -(-LEAST * self.whole // self.side)  # rounded up
        height, width = pixels.shape[:2]
        if min(height, width) < least:
            raise DataError(
                f"a picture of {width}×{height} pixels: a grid of {self.count}×{self.count} tiles needs {least} or "
                f"more a side, {LEAST} a tile; leave such pictures out"
            )
        return resized(random_square(pixels, min_scale, rng, least), self.whole)


def random_square(pixels: np.ndarray, min_scale: float, rng: np.random.Generator, least: int = 1) -> np.ndarray:
    """A square part of [H, W, C] by chance, with an area uniform in [min_scale, 1] of the largest square's, and a side
    of `least` pixels at least."""
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    side = max(round(shorter * float(rng.uniform(min_scale, 1.0)) ** 0.5), least, 1)
    top, left = (int(rng.integers(room, endpoint=True)) for room in (height - side, width - side))
    return pixels[top : top + side, left : left + side]


def resized(square: np.ndarray, side: int) -> np.ndarray:
    """uint8 [S, S, C] -> uint8 [side, side, C], contiguous; both directions are treated alike."""
    if len(square) == side:
        return np.ascontiguousarray(square)
    how = cv2.INTER_AREA if len(square) > side else cv2.INTER_CUBIC
    made = cv2.resize(np.ascontiguousarray(square), (side, side), interpolation=how)
    return made.reshape(side, side, square.shape[2])  # of one channel, OpenCV makes none


def drop_colours(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [3, h, w] -> one channel of it, and in the place of the other two noise around mid grey, with a hundredth
    of the deviation that it has. Where colours are from (a lens bends each by another angle) cannot be told from
    one channel (Doersch et al. 2015, section 3.1)."""
    kept = int(rng.integers(3))
    noise = 127.5 + 0.01 * float(tile[kept].std()) * rng.standard_normal(tile.shape, dtype=np.float32)
    dropped = np.rint(noise).clip(0, 255).astype(np.uint8)
    dropped[kept] = tile[kept]
    return dropped


@cache
def far_permutations(count: int, length: int) -> np.ndarray:
    """uint8 [count, length], permutations of range(length) that differ from each other in as many places as can be.

    Noroozi and Favaro's greedy algorithm: from the first one on, always the permutation that is farthest from all those
    chosen. Farthest: by the least Hamming distance to any of them, then by their sum (theirs looks at the sum alone,
    which leaves pairs that differ by one swap), then the first in lexical order. To begin with another than the
    identity would rename the tiles. No randomness.
    """
    every = _all_permutations(length)
    columns = np.ascontiguousarray(every.T)
    least, total = np.full(len(every), length + 1, np.int64), np.zeros(len(every), np.int64)
    chosen = [0]
    while len(chosen) < count:
        distance = (columns != every[chosen[-1]][:, None]).sum(0, dtype=np.uint8)
        np.minimum(least, distance, out=least)
        total += distance
        chosen.append(int((least * (length * count + 1) + total).argmax()))  # one that is chosen has a least of 0
    found = every[chosen]
    found.flags.writeable = False
    return found


def _all_permutations(length: int) -> np.ndarray:
    """uint8 [length!, length], in lexical order."""
    if length == 1:
        return np.zeros((1, 1), np.uint8)
    shorter = _all_permutations(length - 1)
    blocks = [np.insert(shorter + (shorter >= first), 0, first, axis=1) for first in range(length)]
    return np.concatenate(blocks).astype(np.uint8)
