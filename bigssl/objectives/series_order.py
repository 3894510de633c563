"""Series order: by which permutation were the segments of a window shuffled? The twin in time of `jigsaw` (Noroozi and
Favaro 2016, https://arxiv.org/abs/1603.09246) and of `sentence_order` (two segments: swapped or not).

    series ── window ── segments with gaps ── shuffled by one of N permutations ── each − mean, / deviation ── backbone,
                                                 which one? ── classifier of all features, in order ──────── one by one

What would tell the order without looking at what happens is taken away: between segments a gap is left, by chance wider
or narrower, so that no end fits a begin; each segment is shown without its own level and deviation, by which neighbours
are alike; and the backbone sees one at a time, at a place of its window that chance draws, the rest of which is not
observed. What is left is shape: a series that is the same forwards at any time (noise, a steady hum) has no order, and
stays at the blind line, all permutations alike, ln N. Series that are too short, or of which a segment has no value,
are bad samples (`data.on_error`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.kinds.tiles import far_permutations
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective, ObjectiveConfig
from bigssl.objectives.needs import Needs
from bigssl.objectives.serial import check_normalises, random_steps, series_of, tiny_series, without_mean
from bigssl.objectives.tiled import classified, classifier


class SeriesOrder(Objective):
    """Tell by which permutation the segments of a series were shuffled (jigsaw in time)."""

    class Config(ObjectiveConfig):
        backbone: str = "series"
        segments: int = Field(3, ge=2, le=8, description="into which a window is cut")
        permutations: int = Field(6, ge=2, le=10_000, description="how many there are to tell apart")
        gap: float = Field(0.25, ge=0, le=2, description="between segments at most, in segments; at least half as much")
        hidden: int = Field(256, ge=1, description="hidden size of the classifier")

    takes = {"backbone": Needs("series")}
    starts = {"hidden": 64}
    accumulates = True
    cannot_collapse = True  # of segments that are all alike no order can be told
    adjustable = ("gap",)
    preset = {
        "objective": {"hidden": 32},
        "backbones": {"series": tiny_series(1, 24, 2, d_model=16, ffn_dim=32)},
        "data": "series/italy_power/train",
    }

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        check_normalises(config.backbone, self.backbone)
        count, length = config.segments, self.backbone.length
        if config.permutations > math.factorial(count):
            raise ConfigError(
                f"objective.permutations: value {config.permutations}; allowed: <= {math.factorial(count)}, all that "
                f"there are of {count} segments"
            )
        self.steps = int(length / (count + (count - 1) * config.gap))
        self.stride = self.backbone.model.config.patch_stride
        if self.steps < (least := self.backbone.model.config.patch_length + self.stride):
            raise ConfigError(
                f"objective.segments: value {count} with gap {config.gap} makes segments of {self.steps} of the "
                f"{length} steps that backbone {config.backbone!r} takes; allowed: {least} or more, two patches"
            )
        self.slack = (length - count * self.steps) // (count - 1)  # steps of a gap at most
        self.permutations = far_permutations(config.permutations, count)
        self.head = classifier(count * self.backbone.dim, config.hidden, config.permutations)

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        label = int(rng.integers(len(self.permutations)))
        gaps = rng.integers(self.slack // 2, self.slack + 1, size=self.config.segments - 1)
        whole = self.config.segments * self.steps + int(gaps.sum())
        parts = random_steps(series_of(sample, self.backbone, whole), whole, rng)
        begins = np.concatenate([[0], (self.steps + gaps).cumsum()])
        shown = [self._shown(parts, begins[place], sample, rng) for place in self.permutations[label]]
        series, seen = (np.stack(each) for each in zip(*shown, strict=True))
        return {"series": series, "series_mask": seen, "label": label}

    def _shown(
        self, parts: list[np.ndarray], begin: int, sample: Sample, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """float32 and bool [T, C]: a segment somewhere in a window of which the rest is not observed."""
        values, observed = (part[begin : begin + self.steps] for part in parts)
        if not observed.any():
            raise DataError(f"{sample.where}: nothing was observed in a segment of {self.steps} steps")
        centred = np.where(observed, without_mean(values, observed)[0], np.float32(0))
        free = self.backbone.length - self.steps
        front = int(rng.integers(free // self.stride + 1)) * self.stride
        around = ((front, free - front), (0, 0))
        return np.pad(centred, around), np.pad(observed, around)

    def forward(self, batch: dict[str, Tensor], at: Progress) -> Losses:
        shape = batch["series"].shape[:2]  # [B, K]
        one = {name: batch[name].transpose(0, 1).flatten(0, 1) for name in ("series", "series_mask")}
        features: Tensor = self.backbone.features(one).unflatten(0, shape[::-1]).transpose(0, 1)  # [B, K, D]
        count = self.config.permutations
        return classified(self.head(features.flatten(1)), batch["label"], math.log(count),
                          f"guessing one of {count} permutations", features.flatten(0, 1))  # fmt: skip
