"""Blockwise masks of the patches of a picture (BEiT, Bao et al. 2021, arXiv 2106.08254, algorithm 1)."""

from __future__ import annotations

import math

import numpy as np

ATTEMPTS = 10
NARROWEST = 0.3  # a block is at least this much as high as wide, or the reverse


def blocks(rows: int, columns: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """bool [rows, columns], True where a patch is hidden: `count` of them, in blocks.

    Blocks of random areas up to what is left, with an aspect log-uniform from .3 to 1/.3, are put anywhere; one that
    would hide more than is left is drawn again. What ten attempts leave is filled up by patches at random, so that the
    number is exact. 0 <= count <= rows · columns.
    """
    hidden = np.zeros((rows, columns), bool)
    while (left := count - int(hidden.sum())) > 0 and _place(hidden, left, rng):
        pass
    free = np.flatnonzero(~hidden)
    hidden.flat[rng.permutation(free)[:left]] = True
    return hidden


def _place(hidden: np.ndarray, left: int, rng: np.random.Generator) -> bool:
    """Hide one more block, of which 1 to `left` patches were not hidden; whether one was found."""
    rows, columns = hidden.shape
    least = min(left, (min(rows, columns) // 3) ** 2)
    for area, aspect, y, x in rng.random((ATTEMPTS, 4)).tolist():
        target = least + area * (left - least)
        ratio = math.exp((2 * aspect - 1) * -math.log(NARROWEST))
        height, width = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if not (0 < height <= rows and 0 < width <= columns):
            continue
        top, start = int(y * (rows - height + 1)), int(x * (columns - width + 1))
        block = hidden[top : top + height, start : start + width]
        if 0 < (~block).sum() <= left:
            block[:] = True
            return True
    return False
