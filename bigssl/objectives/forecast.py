"""Forecasting: the next steps of a series from those before them, each channel by itself (PatchTST, Nie et al. 2023,
arXiv 2211.14730, section 3.1).

    series ── window ─┬─ context ── − mean, / deviation, its own ── patches ── backbone ── linear of all patches ──┐
                      └─ horizon ── in the same units ─────────────────────────────────────── squared error ───────┘

Mean and deviation are the context's (reversible instance normalisation, Kim et al. 2022): nothing of the horizon is
seen. With `errors: deviations` a window counts by its own deviation, whatever the unit of its channel, and a value
further than 10 of them from the mean of the context as 10 (`stats/clipped` says how many); with `errors: values` it
is the squared error in the unit of the data, for series that have one, and then the loss of `PatchTSTForPrediction` at
its weights (tests/objectives/test_forecast.py). Horizon 1 is next-step prediction.

The blind line is the better of two forecasts that learn nothing: the context's mean, and its last value; both are
stats, and with `period` the value one period before (seasonal naive), too. Values that were not observed are neither
seen nor asked for. A series shorter than context and horizon is filled up in front of its begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

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
    patches_in,
    random_steps,
    series_of,
    tiny_series,
    without_mean,
)


class SeriesForecast(AsksValues, Objective):
    """Predict the next steps of a series from its past (PatchTST)."""

    class Config(ObjectiveConfig):
        backbone: str = "series"
        horizon: int = Field(96, ge=1, description="steps that are forecast")
        errors: Literal["deviations", "values"] = Field(
            "deviations", description="unit of the errors: of each context its deviation, or that of the data"
        )
        period: int | None = Field(None, ge=1, description="steps of a season: the seasonal naive forecast is in stats")

    takes = {"backbone": Needs("series", BY_CHANNEL, "whose states are of all channels together")}
    starts = {"horizon": 6}
    adjustable = ("errors", "period")
    preset = {
        "objective": {"horizon": 6, "period": 4},
        "backbones": {"series": tiny_series(6, 24, 4, positional_encoding_type="random")},
        "data": "series/basic_motions/train",
    }

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        check_normalises(config.backbone, self.backbone)
        if config.period is not None and config.period > self.backbone.length:
            raise ConfigError(f"objective.period: value {config.period}; allowed: <= {self.backbone.length}, the steps "
                              f"that backbone {config.backbone!r} sees")  # fmt: skip
        self.head = nn.Linear(patches_in(self.backbone) * self.backbone.dim, config.horizon)

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        length = self.backbone.length
        values, observed = random_steps(series_of(sample, self.backbone, self.config.horizon + 1),
                                        length + self.config.horizon, rng, front=True)  # fmt: skip
        seen, asked = observed[:length], observed[length:] & observed[:length].any(0)
        if not asked.any():
            raise DataError(f"{sample.where}: no channel has a value in the {length} steps that are seen and one in "
                            f"the {self.config.horizon} behind them")  # fmt: skip
        past, mean = without_mean(values[:length], seen)
        future = values[length:] - mean
        scale = window_deviation(past, seen) if self.config.errors == "deviations" else None
        target = np.where(asked, future, 0).astype(np.float32) if scale is None else in_deviations(future, scale, asked)
        return {"series": np.where(seen, past, np.float32(0)), "series_mask": seen, "target": target, "asked": asked}

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        hidden = self.backbone.hidden(batch)  # [B, C * P, D]
        predicted = self.head(hidden.unflatten(1, (self.backbone.channels, -1)).flatten(2)).float()  # [B, C, H]
        past, seen, asked, target = (batch[name] for name in ("series", "series_mask", "asked", "target"))
        scale = window_deviation(past, seen)[:, None]
        unit = scale if self.config.errors == "values" else 1.0
        errors = torch.where(asked, predicted.transpose(1, 2) * unit - target, 0.0).square()
        lines = {name: line / scale * unit for name, line in self._lines(past, seen).items()}
        sums = [torch.where(asked, line - target, 0.0).square().sum() for line in lines.values()]
        sums += [asked.sum(), ((target / unit).abs() >= FURTHEST).sum()]
        *naive, everywhere, clipped = distributed.all_reduce_sum(torch.stack([each.detach().double() for each in sums]))
        known = dict(zip(lines, (each / everywhere for each in naive), strict=True))
        best = torch.minimum(known["mean"], known["last_value"]).float()
        loss, blind = mean_of_step(batch, errors.sum(), best, everywhere.float())
        stats = {name: line.float() for name, line in (known | {"clipped": clipped / everywhere}).items()}
        unit_name = "squared deviations" if self.config.errors == "deviations" else "squared error"
        return Losses(loss, blind, unit_name, "the context's mean or last value", stats=stats)

    def _lines(self, past: Tensor, seen: Tensor) -> dict[str, Tensor]:
        """Forecasts that learn nothing, [B, 1 or H, C], of a centred past [B, T, C]."""
        steps = torch.arange(1, past.shape[1] + 1, device=past.device)
        newest = (steps[:, None] * seen).argmax(1, keepdim=True)  # [B, 1, C]
        last = past.gather(1, newest)
        found = {"mean": torch.zeros_like(last), "last_value": last}
        if (period := self.config.period) is not None:
            places = past.shape[1] - period + torch.arange(self.config.horizon, device=past.device) % period
            found["seasonal_naive"] = torch.where(seen[:, places], past[:, places], last)
        return found

    def exports(self) -> dict[str, Head | Network]:
        tensors: dict[str, Tensor] = dict(self.head.named_parameters())
        return {"forecast": Head("forecast", {"series": self.config.backbone}, tensors,
                                 {"horizon": self.config.horizon})}  # fmt: skip
