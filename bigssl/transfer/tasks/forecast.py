"""Forecasts of series that were held out, by a head on the hidden states of a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.config.section import PositiveInt
from bigssl.nets.modality.kinds import BY_CHANNEL
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import evaluating, finite
from bigssl.transfer.inputs import SeriesInput, input_of
from bigssl.transfer.labelled.fit import FitBelow, fit, layer_groups
from bigssl.transfer.labelled.probing import STRENGTHS
from bigssl.transfer.labelled.rows import scored
from bigssl.transfer.labelled.section import Learning
from bigssl.transfer.labelled.trials import Trial, outcomes, trials
from bigssl.transfer.scores import RAW, ScoreRow
from bigssl.transfer.steps.cases import (
    Cases,
    LinearForecast,
    cases_of,
    errors_of,
    last_period,
    last_value,
    own_past,
)
from bigssl.transfer.steps.series import LongSeries, Scale, long_enough, period_of, read_long_series, refuse_later
from bigssl.transfer.steps.windows import set_norms, tokens_of
from bigssl.transfer.subjects import Subject
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

LINEAR = RAW + "linear model of the past"
MEASURES = (("mse", "squared error", "squared deviations"), ("mae", "absolute error", "deviations"))


class Forecast(Learning, FitBelow):
    """The next `horizon` steps from as many as the backbone takes, all channels; errors in deviations of the training
    part.

    Long series and windows of them (`bigssl shards pack --window`, put together again) serve; of one series the
    queries have to be the later part. What a past lacks of the mean and deviation of its series is put back by
    reversible instance normalisation, alike for the trained network, the random one and the linear model. Windows are
    held in memory: `stride` says how many there are.
    """

    preset = {"train": "bigssl/demo/series/basic_motions/train", "queries": "bigssl/demo/series/basic_motions/test",
              "horizon": 6, "stride": 18, "seeds": 2, "fractions": [0.1, 1.0]}  # fmt: skip

    backbone: str = "series"
    horizon: PositiveInt = Field(24, description="steps that are forecast")
    stride: PositiveInt | None = Field(None, description="steps from one window to the next; default the horizon")
    period: PositiveInt | None = Field(
        None, description="steps of a season, for the seasonal naive forecast; default: found in the training part"
    )
    tune: Literal["head", "all"] = Field("head", description="what is fitted: a linear head, or the backbone with it")
    l2: list[Annotated[float, Field(gt=0)]] = Field(
        STRENGTHS, min_length=1, description="penalties of the linear models, chosen on held-out rows"
    )

    def check(self, seen: Checked) -> None:
        takes = input_of(seen.backbone("backbone", "series"))
        assert isinstance(takes, SeriesInput)
        if (kind := seen.backbone("backbone").model.config.model_type) not in BY_CHANNEL:
            seen.refuse("backbone", f"it is of type {kind}, whose states are of all channels together; allowed: one of "
                                    f"type {', '.join(BY_CHANNEL)}, a linear head forecasts each channel")  # fmt: skip
        seen.samples("train", takes)
        seen.samples("queries", takes)
        seen.apart("train")
        seen.at_most("period", takes.length, "the steps that the backbone takes")

    def run(self, bench: Bench) -> list[ScoreRow]:
        work = _Work.of(self, bench)
        asked = trials(self, ["random_net", LINEAR, "trained"], len(work.train), seed=bench.seed)
        asked.sort(key=lambda trial: (trial.contender, trial.seed))  # those that share features follow each other
        found = outcomes(bench, asked, work.errors)
        fixed = {name: errors_of(forecast, work.test) for name, forecast in work.without_learning(bench).items()}
        return [self._row(work, number, found, fixed) for number in range(len(MEASURES))]

    def _row(self, work: _Work, number: int, found: Mapping[Trial, Tensor], fixed: Mapping[str, Tensor]) -> ScoreRow:
        name, words, unit = MEASURES[number]
        count, steps = len(work.test), work.takes.length
        facts = {"windows": len(work.train), "context": steps, "horizon": self.horizon, "period": work.period}
        return scored(
            f"forecast of {self.horizon} steps: {words}",
            f"is the mean {words} of {count} held-out windows, {self.horizon} steps from {steps}",
            {trial: errors[number] for trial, errors in found.items()}, work.test.groups,
            fixed={contender: errors[number] for contender, errors in fixed.items()},
            unit=unit, higher_is_better=False, names={"blind": "the mean of the training part"}, facts=facts, row=name,
        )  # fmt: skip


class _Head(nn.Module):
    """A linear map from all patches of a channel to its future, in front of it the backbone."""

    def __init__(self, model: PreTrainedModel, features: int, horizon: int) -> None:
        super().__init__()
        self.model, self.linear = model, nn.Linear(features, horizon)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, cases: Cases, rows: Tensor, device: str | torch.device) -> Tensor:
        """float32 [n, C, H]"""
        tokens = tokens_of(self.model, cases.seen[rows].to(device)).flatten(2)
        level, spread = cases.level[rows].to(device), cases.spread[rows].to(device)
        return level + spread * self.linear(tokens)


@dataclass
class _Work:
    section: Forecast
    bench: Bench
    subject: Subject
    takes: SeriesInput
    train: Cases
    test: Cases
    period: int | None
    _features: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, section: Forecast, bench: Bench) -> _Work:
        subject = bench.subject(section.backbone, "series")
        takes = subject.takes
        assert isinstance(takes, SeriesInput)
        lines, later = _lines(section, bench, takes)
        scale = Scale.of(f"{bench.where}.train", lines)
        sizes = takes.length, section.horizon, section.stride or section.horizon
        train, test = (cases_of(each, scale, *sizes) for each in (lines, later))
        for name, cases in (("train", train), ("queries", test)):
            if not len(cases):
                raise AgreedError(f"{bench.where}.{name}: no window of {sum(sizes[:2])} steps with a value in its last "
                                  f"{section.horizon}")  # fmt: skip
        period = section.period or period_of([scale(line) for line in lines], takes.length)
        if section.permuted:
            train = train.permuted(bench.seed)
        return cls(section, bench, subject, takes, train, test, period)

    def without_learning(self, bench: Bench) -> dict[str, Tensor]:
        """Forecasts [N, C, H] by contender."""
        found = {"blind": torch.zeros_like(self.test.future), RAW + "last value": last_value(self.test)}
        if self.period is None:
            bench.note(f"{bench.where}: no period of at most {self.takes.length} steps was found in the training part, "
                       "so there is no seasonal naive forecast; name it with period=N.")  # fmt: skip
            return found
        return found | {f"{RAW}last period ({self.period} steps)": last_period(self.test, self.period)}

    def errors(self, trial: Trial) -> Tensor:
        """float32 [2, N], see `errors_of`."""
        if trial.contender == LINEAR:
            train, test = own_past(self.train), own_past(self.test)
        elif self.section.tune == "all":
            return errors_of(self._tuned(trial), self.test)
        else:
            train, test = self._frozen(trial)
        head = LinearForecast.fitted(train, self.train, trial.rows, self.section.l2)
        return errors_of(head(test, self.test), self.test)

    def _frozen(self, trial: Trial) -> tuple[Tensor, Tensor]:
        """Features float32 [N, C, F] of train and test. Those of the last network are kept."""
        key = (trial.contender, 0 if trial.contender == "trained" else trial.seed)
        if key not in self._features:
            model = self._network(*key)
            self._features = {key: (self._features_of(model, self.train), self._features_of(model, self.test))}
        return self._features[key]

    def _network(self, contender: str, seed: int) -> PreTrainedModel:
        model = self.bench.network(self.subject, contender, seed)
        if contender != "trained":
            set_norms(model, self.train.seen, self.section.batch, self.bench.device)
        return model

    def _features_of(self, model: PreTrainedModel, cases: Cases) -> Tensor:
        with evaluating(model):
            parts = cases.seen.split(self.section.batch)
            found = [tokens_of(model, part.to(self.bench.device)).flatten(2).cpu() for part in parts]
        return finite(torch.cat(found), "features of patches")

    def _tuned(self, trial: Trial) -> Tensor:
        """float32 [N, C, H] of the test windows, by a network that was trained on some of the others."""
        model = self._network(trial.contender, trial.seed)
        width = self._features_of(model, self.test).shape[2]
        with torch.random.fork_rng():
            torch.manual_seed(self.bench.seed + trial.seed)
            head = _Head(model, width, self.section.horizon).to(self.bench.device)

        def loss(rows: Tensor) -> Tensor:
            chosen = trial.rows[rows]
            off = head(self.train, chosen, self.bench.device) - self.train.future[chosen].to(self.bench.device)
            return off.square().nanmean()

        groups = layer_groups(model, self.section.layer_decay, list(head.linear.parameters()), self.section.below)
        fit(head, groups, len(trial.rows), loss, self.section, self.bench.seed + trial.seed)
        with evaluating(head):
            parts = torch.arange(len(self.test)).split(self.section.batch)
            return torch.cat([head(self.test, rows, self.bench.device).cpu() for rows in parts])


def _lines(section: Forecast, bench: Bench, takes: SeriesInput) -> tuple[list[LongSeries], list[LongSeries]]:
    """(series to learn from, series to be judged). A collective."""
    steps, found = takes.length + section.horizon, []
    for name, url, limit in (("train", section.train, section.train_limit),
                             ("queries", section.queries, section.query_limit)):  # fmt: skip
        found.append(read_long_series(bench, url, limit=limit, field=name, channels=takes.channels))
    refuse_later(bench.where, *found)
    need = f"{takes.length} that the backbone takes, and {section.horizon} behind them"
    train, test = (long_enough(bench, lines, steps, field=name, need=need)
                   for name, lines in zip(("train", "queries"), found, strict=True))  # fmt: skip
    return train, test
