"""Series contrast: two overlapping crops of a series find each other at every time and scale (TS2Vec, Yue et al. 2022,
arXiv 2106.10466).

    series ─┬─ crop ── times hidden ── backbone ── states of the overlap ┐
            └─ crop ── times hidden ── backbone ── states of the overlap ┴─ against other series, against other times,
                                                                            at each scale: maxima of 1, 2, 4 ... times

A time is a patch of the backbone; of `ts2vec`, the paper's encoder, a step. The states of its channels are averaged,
as features are. Crops are as long as the backbone takes, and overlap by a fixed share, so that all samples of a batch
have as many times in common; the paper draws it anew for each batch. A hidden time is to the backbone as one that was
never observed (the paper hides what the first layer makes of it). Each crop is normalised by what it shows, where the
backbone normalises (`scaling: std`). The loss is α times the contrast with other series of all ranks plus 1 − α times
that with other times, a mean over scales (`bigssl/objectives/hierarchy.py`). Blind line: everything equal. A series
shorter than both crops is filled up behind its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective, ObjectiveConfig, attraction
from bigssl.objectives.comparing import Comparing
from bigssl.objectives.hierarchy import Contrasts, hierarchical_contrast
from bigssl.objectives.needs import Needs
from bigssl.objectives.serial import random_steps, series_of, tiny_series, whole_patches, without_mean


class SeriesContrast(Comparing, Objective):
    """Contrast two overlapping crops of each series, over times and series (TS2Vec)."""

    class Config(ObjectiveConfig):
        backbone: str = "series"
        overlap: float = Field(0.5, gt=0, le=1, description="share of a crop that the other one has, too")
        hide: float = Field(0.5, ge=0, lt=1, description="probability that a time is hidden, in each crop by itself")
        alpha: float = Field(0.5, ge=0, le=1, description="share of the contrast with other series, the rest: times")
        temperature: float = Field(1.0, gt=0, description="divides the similarities; 1: the paper")

    takes = {"backbone": Needs("series")}
    starts = {"temperature": 0.5}
    least = 2  # of one series there is no other
    adjustable = ("hide", "alpha", "temperature")
    preset = {
        "objective": {"temperature": 0.2, "hide": 0.25},
        "backbones": {"series": tiny_series(6, 32, 4)},
        "data": "series/basic_motions/train",
    }

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.patch, self.patches = whole_patches(config.backbone, self.backbone)
        self.shared = round(self.patches * config.overlap)
        if self.shared < 2:
            raise ConfigError(f"objective.overlap: value {config.overlap} of {self.patches} patches is {self.shared}; "
                              "allowed: 2 patches or more, of which each is the other's negative")  # fmt: skip

    @property
    def _later(self) -> int:
        """Steps by which the second crop begins behind the first."""
        return (self.patches - self.shared) * self.patch

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        length = self.backbone.length
        whole = random_steps(series_of(sample, self.backbone, 1), length + self._later, rng)
        found: dict[str, Any] = {}
        for number, begin in ((1, 0), (2, self._later)):
            values, observed = (part[begin : begin + length] for part in whole)
            if not observed.any():
                raise DataError(f"{sample.where}: nothing was observed in a crop of {length} steps")
            seen = observed & ~self._hidden(observed, rng)[:, None]
            shown = without_mean(values, seen)[0] if self.backbone.model.config.scaling == "std" else values
            found |= {f"series{number}": np.where(seen, shown, 0).astype(np.float32), f"seen{number}": seen}
        return found

    def _hidden(self, observed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """bool [T], of whole patches; at least one that holds something is left."""
        front = len(observed) - self.patch * self.patches
        hidden = rng.random(self.patches) < self.config.hide
        there = observed[front:].reshape(self.patches, -1).any(1)
        if there.any() and not (there & ~hidden).any():
            hidden[rng.choice(np.flatnonzero(there))] = False
        return np.concatenate([np.zeros(front, dtype=bool), hidden.repeat(self.patch)])

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        views = {"series": ("series1", "series2"), "series_mask": ("seen1", "seen2")}
        hidden = self.backbone.hidden({name: torch.cat([batch[each] for each in both]) for name, both in views.items()})
        times = hidden.unflatten(1, (-1, self.patches)).mean(1)  # [2B, P, D]
        first, second = times.chunk(2)
        return {"first": first[:, self.patches - self.shared :], "second": second[:, : self.shared]}

    def compare(self, embeddings: Mapping[str, Tensor], at: Progress) -> Losses:
        first, second = embeddings["first"], embeddings["second"]
        alpha, found = self.config.alpha, self._contrast(first, second)
        total = alpha * found.instance + (1 - alpha) * found.temporal
        blind = alpha * found.blind_instance + (1 - alpha) * found.blind_temporal
        parts = {
            "instance": Losses(found.instance.detach(), found.blind_instance),
            "temporal": Losses(found.temporal.detach(), found.blind_temporal),
        }
        means = torch.stack([first.mean(1), second.mean(1)]).detach().float()
        spread = {"states": distributed.spread(means[0])}
        return Losses(total, blind, blind_name="everything equal", parts=parts, spread=spread, views={"states": means})

    def _contrast(self, first: Tensor, second: Tensor) -> Contrasts:
        return hierarchical_contrast(first, second, self.config.temperature)

    def guards(self) -> dict[str, Callable[[], None]]:
        return {"negatives": lambda: setattr(self, "_contrast", _without_negatives)}


def _without_negatives(first: Tensor, second: Tensor) -> Contrasts:
    both = attraction(first.flatten(0, 1).float(), second.flatten(0, 1).float())
    return Contrasts(both, both, 1.0, 1.0)
