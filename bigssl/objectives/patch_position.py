"""Relative position of two patches (Doersch et al. 2015, https://arxiv.org/abs/1505.05192).

    picture ── 3 × 3 patches with gaps ─┬─ the centre one ───── backbone ─┐
                                        └─ one of 8 others ── the same ───┴─ classifier ── which of the 8 places

The gap of half a patch and the jitter keep lines and textures from going on from one patch to the other, the colours'
guard (tiled.py) keeps a lens's fringes from telling where in a picture a patch was: what is left is to know what the
patches show. Loss: cross-entropy. Blind line: all places are as likely, ln 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective
from bigssl.objectives.needs import Needs
from bigssl.objectives.tiled import SMALL, TiledConfig, Tiles, classified, classifier

CENTRE, AROUND = 4, (0, 1, 2, 3, 5, 6, 7, 8)
"""Places in a grid of 3 × 3, row by row."""


class PatchPosition(Objective):
    """Tell on which of eight sides of a patch another one lies (context prediction)."""

    class Config(TiledConfig):
        pass

    takes = {"backbone": Needs("image")}
    starts = {"hidden": 256}
    accumulates = True
    cannot_collapse = True  # of patches that are all alike no place can be told
    adjustable = ("min_scale",)
    preset = {
        "objective": {"hidden": 32, "colours": "keep", "min_scale": 0.9},
        "backbones": {"image": SMALL},
    }

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.tiles = Tiles(config, self.backbone, 3)
        self.head = classifier(2 * self.backbone.dim, config.hidden, len(AROUND))

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        square, label = self.tiles.square(sample, rng), int(rng.integers(len(AROUND)))
        return {"patches": self.tiles.cut(square, [CENTRE, AROUND[label]], rng), "label": label}

    def forward(self, batch: dict[str, Tensor], at: Progress) -> Losses:
        features = self.tiles.features(batch["patches"])  # [B, 2, D]
        logits = self.head(features.flatten(1))
        return classified(logits, batch["label"], math.log(8), "guessing one of 8 places", features.flatten(0, 1))
