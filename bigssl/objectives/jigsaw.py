"""Jigsaw puzzles (Noroozi and Favaro 2016, https://arxiv.org/abs/1603.09246).

    picture ── 3 × 3 tiles with gaps ── shuffled by one of N permutations ── each normalised ── backbone, one by one
                                              which one? ── classifier of all features, in order ───────┘

The permutations are far from each other (`far_permutations`); 100 by default, of which the paper has 1,000. A tile is
shown without its own mean colour and contrast, which alone would say which tiles were neighbours; the backbone sees one
tile at a time ("context free"). The paper moves tiles of 64 pixels freely in cells of 75, so that some touch; here a
gap is left between all. Loss: cross-entropy. Blind line: all permutations are as likely, ln N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from bigssl.config.errors import ConfigError
from bigssl.data.kinds.tiles import far_permutations
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective
from bigssl.objectives.needs import Needs
from bigssl.objectives.tiled import SMALL, TiledConfig, Tiles, classified, classifier

MEAN, DEVIATION, FLAT = 127.5, 64.0, 1.0
"""Of a normalised tile, in the bytes of a picture, which it is then like; and the least deviation that one is given for
its own: noise would come in the place of nothing. (Added to all, it would leave a trace of each tile's contrast.)"""


class Jigsaw(Objective):
    """Tell by which permutation the tiles of a picture were shuffled (jigsaw puzzles)."""

    class Config(TiledConfig):
        grid: Literal[2, 3] = Field(3, description="tiles a side")
        permutations: int = Field(100, ge=2, le=10_000, description="how many there are to tell apart")
        gap: float = Field(0.25, ge=0, le=2, description="between tiles, in tiles")
        jitter: float = Field(0.0625, ge=0, le=1, description="by how much a tile is moved at most, in tiles")
        min_scale: float = Field(0.6, gt=0, le=1, description="smallest share of the picture's square that is cut up")

    takes = {"backbone": Needs("image")}
    starts = {"hidden": 256, "permutations": 24}
    accumulates = True
    cannot_collapse = True  # of tiles that are all alike no order can be told
    adjustable = ("min_scale",)
    preset = {
        "objective": {"hidden": 32, "permutations": 4, "grid": 2, "colours": "keep", "min_scale": 0.9},
        "backbones": {"image": SMALL},
    }

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.tiles = Tiles(config, self.backbone, config.grid)
        length = config.grid**2
        if config.permutations > math.factorial(length):
            raise ConfigError(
                f"objective.permutations: value {config.permutations}; allowed: <= {math.factorial(length)}, all that "
                f"there are of {config.grid}×{config.grid} tiles"
            )
        self.permutations = far_permutations(config.permutations, length)
        self.head = classifier(length * self.backbone.dim, config.hidden, config.permutations)

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        square, label = self.tiles.square(sample, rng), int(rng.integers(len(self.permutations)))
        return {"tiles": self.tiles.cut(square, self.permutations[label].tolist(), rng), "label": label}

    def forward(self, batch: dict[str, Tensor], at: Progress) -> Losses:
        features = self.tiles.features(normalised_tiles(batch["tiles"]))  # [B, T, D]
        logits = self.head(features.flatten(1))
        count = self.config.permutations
        said = f"guessing one of {count} permutations"
        return classified(logits, batch["label"], math.log(count), said, features.flatten(0, 1))


def normalised_tiles(tiles: Tensor) -> Tensor:
    """[..., C, h, w] in 0..255 -> float32, each channel of a tile with mean `MEAN`, and all of a tile together with the
    deviation `DEVIATION` around these (of each alone, dropped channels would be as loud as the one that is left)."""
    values = tiles.float()
    centred = values - values.mean((-2, -1), keepdim=True)
    deviation = centred.square().mean((-3, -2, -1), keepdim=True).sqrt()
    return MEAN + DEVIATION * centred / deviation.clamp(min=FLAT)
