"""What is hidden of a picture: a block, the middle, or the strokes of a brush; a function of a generator's draws."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Shape = Literal["block", "center", "irregular"]
LEAST, MOST = 0.02, 0.5  # shares of a picture that may be hidden
SMALLEST = 8  # pixels a side: of one with half of them hidden, a border of one pixel is seen
_ELONGATED = 2.0  # a block's longer side in parts of its shorter one, at most
_BENDS, _LONGEST, _BRUSH = 12, 40 / 256, (8 / 256, 24 / 256)  # of a stroke; in parts of the picture's side


class Holes(NamedTuple):
    """How holes are drawn.

    shape: "block", a rectangle (sides 1:2 to 2:1) anywhere inside the picture; "center", a square in its middle
    (Pathak et al. 2016, arXiv 1604.07379: both); "irregular", free-form strokes (Yu et al. 2019, arXiv 1806.03589,
    algorithm 1, in proportion to its 256 pixels), as many as it takes.
    share: of the pixels that are hidden (LEAST to MOST), to a row of pixels; of strokes a little more, up to half of
    the last stroke's straight piece (.015 + .007).
    size: side of the picture.
    """

    shape: Shape
    share: float
    size: int

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """bool [1, size, size], True where something is hidden. Some is always hidden, some always seen."""
        if self.shape == "irregular":
            return self._strokes(rng)[None]
        top, left, height, width = self._middle() if self.shape == "center" else self._block(rng)
        hidden = np.zeros((1, self.size, self.size), dtype=bool)
        hidden[:, top : top + height, left : left + width] = True
        return hidden

    def of_seeds(self, seeds: Tensor) -> Tensor:
        """int64 [B] -> bool [B, 1, size, size] on the device of `seeds`, the same wherever it is drawn."""
        drawn = [self.draw(np.random.default_rng(seed % 2**64)) for seed in seeds.tolist()]
        return torch.from_numpy(np.stack(drawn)).to(seeds.device)

    def _middle(self) -> tuple[int, int, int, int]:
        side = self._inside(self.size * math.sqrt(self.share))
        start = (self.size - side) // 2
        return start, start, side, side

    def _block(self, rng: np.random.Generator) -> tuple[int, int, int, int]:
        area = self.share * self.size**2
        longest = math.log(min(_ELONGATED, (self.size - 2) ** 2 / area))
        height = self._inside(math.sqrt(area * math.exp(rng.uniform(-longest, longest))))
        width = self._inside(area / height)
        top, left = (int(rng.integers(1, self.size - side)) for side in (height, width))
        return top, left, height, width

    def _inside(self, side: float) -> int:
        return min(max(round(side), 1), self.size - 2)

    def _strokes(self, rng: np.random.Generator) -> np.ndarray:
        canvas = np.zeros((self.size, self.size), dtype=np.uint8)
        while True:
            here, turn = rng.uniform(0, self.size, 2), rng.uniform(0, 2 * math.pi)
            brush = max(1, round(rng.uniform(*_BRUSH) * self.size))
            for bend in range(int(rng.integers(1, _BENDS + 1))):
                turn += math.pi * (bend % 2) + rng.uniform(-1, 1) * 2 * math.pi / 15
                reach = rng.uniform(0, _LONGEST) * self.size
                there = np.clip(here + reach * np.array([math.cos(turn), math.sin(turn)]), 0, self.size - 1)
                ends = [(int(each[0]), int(each[1])) for each in (here, there)]
                cv2.line(canvas, ends[0], ends[1], 1, brush)
                if np.count_nonzero(canvas) >= self.share * self.size**2:
                    return canvas.astype(bool)
                here = there


def around(hidden: Tensor, pixels: int = 1) -> Tensor:
    """bool [B, 1, H, W] -> the pixels that are seen and at most `pixels` from a hidden one."""
    wide = F.max_pool2d(hidden.float(), 2 * pixels + 1, 1, pixels) > 0
    return wide & ~hidden


def border_mean(pixels: Tensor, hidden: Tensor) -> Tensor:
    """[B, C, 1, 1]: the mean colour of the pixels that are seen and touch what is hidden."""
    border = around(hidden)
    return (pixels * border).sum((2, 3), keepdim=True) / border.sum((2, 3), keepdim=True)
