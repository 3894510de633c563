"""Masked series: patches of a window are hidden, channel by channel, and their values predicted (PatchTST, Nie et al.
2023, arXiv 2211.14730, section 3.2).

    series ── window ── some patches of each channel hidden ── − mean, / deviation of the rest ── backbone, each channel
                                                                by itself ── linear ── squared error on the hidden ones

A hidden value is to the backbone as one that was never observed: it is no part of the mean and deviation by which a
channel is normalised, and 0 stands in its place (the paper's own code, and transformers', take both of the whole
window, which tells of what is hidden). The loss is the mean over hidden values that were observed, in deviations of
what is visible, as far as 10 of them; `stats/clipped` is the share that is further away. The blind line is the error
of each channel's visible mean. What is hidden is drawn per sample and epoch.

A shorter series than the window is filled up behind its end; one without a channel in which something is hidden and
something is seen is a bad sample (`data.on_error`). On `PatchTSTForPretraining`'s weights, inputs and mask the loss is
its loss (tests/objectives/test_masked_series.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.heads.steps import window_deviation
from bigssl.nets.modality.kinds import BY_CHANNEL
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig
from bigssl.objectives.counting import mean_of_step
from bigssl.objectives.needs import Needs
from bigssl.objectives.serial import (
    FURTHEST,
    AsksValues,
    check_normalises,
    in_deviations,
    random_steps,
    series_of,
    tiny_series,
    whole_patches,
    without_mean,
)


class MaskedSeries(AsksValues, Objective):
    """Predict the values of hidden patches of a series (PatchTST)."""

    class Config(ObjectiveConfig):
        backbone: str = "series"
        ratio: float = Field(0.4, gt=0, lt=1, description="share of the patches of a channel that are hidden")

    takes = {"backbone": Needs("series", BY_CHANNEL, "whose states are of all channels together")}
    adjustable = ("ratio",)
    preset = {
        "objective": {},
        "backbones": {"series": tiny_series(6, 32, 4, num_hidden_layers=2, positional_encoding_type="random")},
        "data": "series/basic_motions/train",
    }

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        check_normalises(config.backbone, self.backbone)
        self.patch, self.patches = whole_patches(config.backbone, self.backbone)
        if not 0 < (hidden := hidden_of(self.patches, config.ratio)) < self.patches:
            raise ConfigError(
                f"objective.ratio: value {config.ratio} hides {hidden} of {self.patches} patches; allowed: what hides "
                "one and shows one (a smaller patch_length gives more patches)"
            )
        self.head = nn.Linear(self.backbone.dim, self.patch)

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        values, observed = random_steps(series_of(sample, self.backbone, 1), self.backbone.length, rng)
        hidden = self._hidden(observed, rng)
        visible = observed & ~hidden
        asked = observed & hidden & visible.any(0)
        if not asked.any():
            raise DataError(f"{sample.where}: no channel has two patches of {self.patch} steps with a value in each, "
                            "one to be hidden and one to be seen")  # fmt: skip
        shown = without_mean(values, visible)[0]
        target = in_deviations(shown, window_deviation(shown, visible), asked)
        by_channel = {name: each[self._front :].T for name, each in (("target", target), ("asked", asked))}
        return {"series": np.where(visible, shown, np.float32(0)), "series_mask": visible, **by_channel}

    @property
    def _front(self) -> int:
        """Steps before the first patch, which fill none."""
        return self.backbone.length - self.patch * self.patches

    def _hidden(self, observed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """bool [T, C]: of each channel's patches that hold something, the share that is hidden."""
        channels = observed.shape[1]
        there = observed[self._front :].reshape(self.patches, self.patch, channels).any(1)  # [P, C]
        order = np.where(there, rng.random(there.shape), 2.0).argsort(0).argsort(0)  # empty ones come last
        counts = np.array([hidden_of(int(count), self.config.ratio) for count in there.sum(0)])
        hidden = (order < counts).repeat(self.patch, 0)
        return np.concatenate([np.zeros((self._front, channels), dtype=bool), hidden])

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        hidden = self.backbone.hidden(batch)  # [B, C * P, D]
        predicted = self.head(hidden).float().flatten(1)  # [B, C * P * patch]
        target, asked = batch["target"].flatten(1), batch["asked"].flatten(1)
        errors = torch.where(asked, predicted - target, 0.0).square()
        sums = [target.square().sum(), asked.sum(), (target.abs() >= FURTHEST).sum()]
        squares, everywhere, clipped = distributed.all_reduce_sum(torch.stack([each.double() for each in sums]))
        blind = (squares / everywhere).float()
        loss, blind = mean_of_step(batch, errors.sum(), blind, everywhere.float())
        stats = {"clipped": (clipped / everywhere).float()}
        return Losses(loss, blind, "squared deviations", "each channel's visible mean", stats=stats)

    def exports(self) -> dict[str, Head | Network]:
        tensors: dict[str, Tensor] = dict(self.head.named_parameters())
        return {"masked_series": Head("masked_series", {"series": self.config.backbone}, tensors,
                                      {"ratio": self.config.ratio})}  # fmt: skip


def hidden_of(patches: int, ratio: float) -> int:
    """How many of `patches` are hidden: the paper's, whose visible ones are rounded down, but never all."""
    return patches - max(int(patches * (1 - ratio) + 1e-9), min(patches, 1))
