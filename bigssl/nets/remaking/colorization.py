"""Colour from lightness (Zhang et al. 2016, arXiv 1603.08511): what the states of a network that saw a picture's
lightness say of its colours, in bins of the ab plane or as two numbers; and the bins.

Bins are the points of a grid over ab that a colour of sRGB may stand between: the four corners of each cell of the grid
that holds one. With a grid of 10 there are 309, of all 16.7 million colours. The paper's list has 313: these and four
at its rim, (40, 90), (100, -90), (100, -10) and (100, 0), in whose cells there is no colour of sRGB.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.nets.modality import MODALITIES
from bigssl.nets.remaking.base import Remade, Remaker
from bigssl.nets.remaking.lab import lab_of, rgb_of

NEIGHBOURS, SIGMA = 5, 5.0
"""Bins that a colour is shared out among, and the deviation of the Gaussian by which (section 2.1)."""
TEMPERATURE = 0.38
"""Of the annealed mean: 1 gives the mean, washed out, and 0 the likeliest bin, blotchy (section 2.3)."""
SCALE = 110.0
"""ab of a regression's output of 1."""
GREY_UP_TO = 4
"""|a| and |b| of what has no colour to speak of: all of it would be in the bin (0, 0) of the paper's grid."""
_CODES = 256  # of a and of b, -128 to 127


class ColorizationRemaker(Remaker):
    """A light decoder: states [B, T, D] of a network -> colours at a quarter of the picture's resolution."""

    seen: Tensor

    def __init__(self, *, dim: int, size: int, width: int, bin: int | None) -> None:
        """
        Args:
            dim: of the hidden states. size: of the pictures. width: channels of the decoder, a multiple of 8.
            bin: side of a bin in ab; None: two numbers are predicted, no bins.
        """
        super().__init__(dim=dim, size=size, width=width, bin=bin)
        self.side = math.ceil(size / 4)
        self.bins = None if bin is None else ColourBins(bin)
        outputs = 2 if self.bins is None else len(self.bins.centres)
        self.narrow = nn.Sequential(nn.Conv2d(dim, width, 1), nn.GroupNorm(8, width), nn.ReLU(inplace=True))
        layers = [
            (nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU(inplace=True)) for _ in range(2)
        ]
        self.refine = nn.Sequential(*itertools.chain.from_iterable(layers), nn.Conv2d(width, outputs, 1))
        self.register_buffer("seen", torch.zeros(3, dtype=torch.float64))  # sums of a and of b, and pixels

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D], T places of a square -> float32 [B, bins or 2, side, side]: logits, or ab / `SCALE`."""
        places = math.isqrt(hidden.shape[1])
        grid = self.narrow(hidden.transpose(1, 2).unflatten(2, (places, places)))
        grown = F.interpolate(grid, size=(self.side, self.side), mode="bilinear", align_corners=False)
        said: Tensor = self.refine(grown).float()
        return said

    @torch.no_grad()
    def look(self, sums: Tensor) -> None:
        """Adds float64 [3], sums of a and of b of so many pixels, to those of all that was trained on."""
        self.seen += sums

    def colours(self, said: Tensor) -> Tensor:
        """What `forward` gave -> ab, float32 [B, 2, side, side]: of bins, the annealed mean."""
        if self.bins is None:
            return said * SCALE
        centres = torch.from_numpy(self.bins.centres).to(said)
        return torch.einsum("bqhw,qc->bchw", (said / TEMPERATURE).softmax(1), centres)

    def remake(self, model: PreTrainedModel, pictures: Tensor, seeds: Tensor) -> Remade:
        light = lab_of(pictures)[:, :1]
        shown = as_bytes(light).expand(-1, 3, -1, -1)
        ab = self.colours(self(MODALITIES["image"].hidden(model, {"image": shown})))
        whole = F.interpolate(ab, size=pictures.shape[-2:], mode="bilinear", align_corners=False)
        judged = torch.ones_like(light, dtype=torch.bool)
        return Remade(_painted(light, torch.zeros_like(whole)), _painted(light, whole), judged)

    def simple(self, pictures: Tensor, given: Tensor, judged: Tensor) -> dict[str, Tensor]:
        light = lab_of(pictures)[:, :1]
        mean = (self.seen[:2] / self.seen[2].clamp(min=1)).float().view(1, 2, 1, 1)
        return {"grey": given, "the mean colour": _painted(light, mean.expand(len(light), 2, *light.shape[-2:]))}

    def caption(self) -> str:
        return "Given: the lightness of a picture; made: the same lightness with the colours that the network expects."


def as_bytes(light: Tensor) -> Tensor:
    """Lightness in 0..100 -> uint8 in 0..255, what a network sees of a picture."""
    return (light * 2.55).round().clamp(0, 255).to(torch.uint8)


def _painted(light: Tensor, ab: Tensor) -> Tensor:
    return rgb_of(torch.cat([light, ab], 1))


class ColourBins(nn.Module):
    """Bins of the ab plane with a side of `step`; which are nearest to a colour, in a table of whole a and b.

    Attributes:
        centres: float32 [Q, 2] numpy, of the bins.
    """

    near: Tensor
    shares: Tensor
    blur: Tensor

    def __init__(self, step: int) -> None:
        super().__init__()
        self.centres, near, shares, blur = _tables(step)
        self.register_buffer("near", torch.from_numpy(near.copy()), persistent=False)
        self.register_buffer("shares", torch.from_numpy(shares.copy()), persistent=False)
        self.register_buffer("blur", torch.from_numpy(blur.copy()), persistent=False)

    def forward(self, colours: Tensor) -> tuple[Tensor, Tensor]:
        """Soft encoding of int8 ab [B, 2, h, w]: the nearest bins, int64 [B, 5, h, w], the nearest of all first, and
        how much of the colour is in each, float32 of the same shape with a sum of 1: Gaussian in the distance."""
        a, b = (colours.long() + _CODES // 2).unbind(1)
        code = a * _CODES + b
        near = self.near[code].long().clamp(0, len(self.centres) - 1)  # a number that is none would end a GPU's process
        return near.movedim(-1, 1), self.shares[code].movedim(-1, 1)

    def weights(self, counts: Tensor, uniform: float) -> Tensor:
        """Rebalancing: float32 [Q], w ∝ 1 / ((1 − λ) p̃ + λ / Q), where p̃ are the frequencies p, smoothed over the ab
        plane (section 2.2).

        Scaled so that Σ p w = 1, that colours weigh 1 on average. (The paper has Σ p̃ w = 1: of few pictures, whose
        colours are far apart, the loss would then be smaller than that of colours that all weigh the same.)

        Args:
            counts: int64 [Q], of the colours so far.
            uniform: λ.
        """
        bins = len(counts)
        frequencies = ((counts + 1 / bins) / (counts.sum() + 1)).float()
        raised = 1 / ((1 - uniform) * (self.blur @ frequencies) + uniform / bins)
        return raised / (frequencies * raised).sum()


@cache
def _tables(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres float32 [Q, 2]; by the code of a colour, its nearest bins int16 [65536, 5] and its shares float32; and
    the Gaussian blur of frequencies float32 [Q, Q], whose columns have a sum of 1."""
    centres = colour_grid(step)
    axis, count = np.arange(-_CODES // 2, _CODES // 2), len(centres)
    near, shares = [], []
    for a in axis:
        squares = (a - centres[:, 0]) ** 2 + (axis[:, None] - centres[:, 1]) ** 2  # [256, Q]
        ranked = squares * count + np.arange(count)  # of two as near, the first
        found = np.sort(np.partition(ranked, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS], axis=1)
        far = found // count
        weight = np.exp((far[:, :1] - far) / (2 * SIGMA**2))  # beside the nearest's: far off, exp of all is 0
        near.append((found % count).astype(np.int16))
        shares.append((weight / weight.sum(1, keepdims=True)).astype(np.float32))
    distances = ((centres[:, None] - centres[None]) ** 2).sum(-1)
    blur = np.exp(-distances / (2 * SIGMA**2))
    return (centres.astype(np.float32), np.concatenate(near), np.concatenate(shares),
            (blur / blur.sum(0)).astype(np.float32))  # fmt: skip


def colour_grid(step: int) -> np.ndarray:
    """int64 [Q, 2], the points of a grid of `step` over ab between which the colours of sRGB lie, in order.

    Those of the surface of the RGB cube suffice: a line of one ab through the cube ends on it.
    """
    edge = np.arange(256, dtype=np.uint8)
    one, other = np.meshgrid(edge, edge, indexing="ij")
    cells: list[np.ndarray] = []
    for axis, value in itertools.product(range(3), (0, 255)):
        face = np.insert(np.stack([one, other]), axis, value, axis=0)
        found = lab_of(torch.from_numpy(face))[1:].flatten(1).numpy()
        cells.append(np.unique(np.floor(found / step).astype(np.int64), axis=1).T)
    corners = [cell + corner for cell in cells for corner in itertools.product((0, 1), repeat=2)]
    grid: np.ndarray = np.unique(np.concatenate(corners), axis=0) * step
    return grid
