"""Rotations (Gidaris et al. 2018, https://arxiv.org/abs/1803.07728).

    picture ── square crop ── turned by 0, 90, 180 or 270 degrees ── backbone ── linear layer ── by how much?

A crop is square and resized by one factor, and a turn moves whole pixels: nothing of how it was made tells a turn, only
what is seen. All four turns of each picture are in a batch, as in the paper, where they do better than one. Loss:
cross-entropy. Blind line: all turns are as likely, ln 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from bigssl.data.kinds.tiles import random_square, resized
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective, ObjectiveConfig
from bigssl.objectives.needs import Needs
from bigssl.objectives.seeing import picture_of
from bigssl.objectives.tiled import classified

TURNS = 4


class Rotation(Objective):
    """Tell by which of four right angles a picture was turned (RotNet)."""

    class Config(ObjectiveConfig):
        backbone: str = "image"
        all_turns: bool = Field(True, description="show each picture turned in all four ways, else in one by chance")
        min_scale: float = Field(0.75, gt=0, le=1, description="smallest share of a picture's square that a crop keeps")
        flip: bool = Field(True, description="mirror half of the pictures, before they are turned")

    takes = {"backbone": Needs("image")}
    accumulates = True
    cannot_collapse = True  # of pictures that are all alike no turn can be told
    adjustable = ("all_turns", "min_scale", "flip")
    preset = {"objective": {"all_turns": False}, "backbones": {"image": "vit"}}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.head = nn.Linear(self.backbone.dim, TURNS)

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        picture = picture_of(sample, self.backbone)
        square = resized(random_square(picture, self.config.min_scale, rng), self.backbone.size)
        if self.config.flip and rng.random() < 0.5:
            square = square[:, ::-1]
        if self.config.all_turns:
            return {"image": np.ascontiguousarray(square.transpose(2, 0, 1))}
        turn = int(rng.integers(TURNS))
        return {"image": np.ascontiguousarray(np.rot90(square, turn).transpose(2, 0, 1)), "turn": turn}

    def forward(self, batch: dict[str, Tensor], at: Progress) -> Losses:
        pictures, turns = every_turn(batch["image"]) if self.config.all_turns else (batch["image"], batch["turn"])
        features = self.backbone.features({"image": pictures})
        return classified(self.head(features), turns, math.log(TURNS), "guessing one of 4 turns", features)


def every_turn(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """[B, C, S, S] -> [4 B, C, S, S], all of them turned by 0, 90, 180 and 270 degrees to the left, pixel by pixel; and
    by how many right angles, int64 [4 B]."""
    turned = torch.cat([pictures.rot90(turn, (-2, -1)) for turn in range(TURNS)])
    return turned, torch.arange(TURNS, device=pictures.device).repeat_interleave(len(pictures))
