"""Anomalous steps of series, found by what is unlike the training part in the hidden states of a backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.config.evaluate import Evaluation, Limit
from bigssl.config.section import PositiveInt
from bigssl.nets.heads.base import Head
from bigssl.nets.heads.steps import errors_when_hidden
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import evaluating, finite
from bigssl.transfer.inputs import SeriesInput, input_of
from bigssl.transfer.labelled.rows import scored
from bigssl.transfer.labelled.trials import Trial, outcomes
from bigssl.transfer.measures.ranking import StepCounts, average_precision, point_adjusted
from bigssl.transfer.measures.surface import vus_pr
from bigssl.transfer.scores import RAW, ScoreRow
from bigssl.transfer.steps.detectors import (
    Detector,
    at_random,
    hidden_errors,
    patch_memory,
    polynomial,
    principal_components,
)
from bigssl.transfer.steps.series import (
    LongSeries,
    Scale,
    long_enough,
    long_series_of,
    period_of,
    read_long_series,
    refuse_later,
)
from bigssl.transfer.steps.windows import CALIBRATING, StepWindows, set_norms, tokens_of
from bigssl.transfer.subjects import Subject
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

PCA, POLYNOMIAL = RAW + "principal components", RAW + "polynomial"
NAMES = {"blind": "a random score"}
BORDER = 100  # widest border of VUS-PR, in steps, where the training part has no period
HELD = 5  # one part in so many of the training part sets the threshold
WINDOWS = 8  # to a window's length, where `stride` is left out


class StepsJudged(NamedTuple):
    """Of a series: steps counted as they were called, and with point adjustment; AUC-PR and VUS-PR, NaN where it has no
    anomaly."""

    plain: StepCounts
    adjusted: StepCounts
    auc_pr: float
    vus_pr: float


class Anomaly(Evaluation):
    """A score for each step of labelled series: how far the hidden state of its patch is from those of normal windows.

    The labels of `queries` are read for the measures only. From `train`, which counts as normal, come the memory of the
    detectors (four fifths) and the threshold (the `quantile` of the scores of the last fifth, which is not in the
    memory). `label` is a list in the json of a series: 0 or 1 of each step.
    With `head`, one of `masked_series`, the score is instead the squared error of a step's patch when that is hidden.
    A backbone that brings each window to variance 1, as PatchTST does, sees no change of level that outlasts a window.
    """

    preset: ClassVar[dict[str, Any]] = {"train": "made/anomaly/train", "queries": "made/anomaly/val", "seeds": 2}

    learns_from: ClassVar[str | None] = "train"
    probes: ClassVar[bool] = False

    backbone: str = "series"
    train: str = Field(description="shards with series that count as normal")
    train_limit: Limit = None
    label: str = Field("label", description="metadata field of queries with the list of marks: 0 or 1 of each step")
    quantile: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.99, description="of the scores of held-out normal steps: what is above it is called anomalous"
    )
    head: str | None = Field(
        None, description="name under export/heads of one that fills in hidden patches; default: states are compared"
    )
    k: PositiveInt = Field(3, description="nearest normal patches whose mean distance is the score")
    stride: PositiveInt | None = Field(None, description="steps from one window to the next; default an eighth of it")
    border: PositiveInt | None = Field(
        None, description="widest border of VUS-PR, in steps; default the period of the training part, or 100"
    )
    seeds: PositiveInt = Field(3, description="random networks, and random scores")

    @model_validator(mode="after")
    def _nothing_is_remembered(self) -> Anomaly:
        if self.head is not None:
            self.refuse_idle("with head, which remembers nothing", "k")
        return self

    def unlabelled(self) -> dict[str, str]:
        return {self.backbone: "train"}

    def check(self, seen: Checked) -> None:
        takes = input_of(seen.backbone("backbone", "series"))
        assert isinstance(takes, SeriesInput)
        if self.head is not None:
            seen.head("head", "masked_series", {"series": "backbone"})
        seen.samples("train", takes)
        seen.samples("queries", takes, "label")
        seen.readable("queries", partial(long_series_of, channels=takes.channels, label=self.label))
        seen.apart("train")
        seen.at_most("stride", takes.length, "the steps of a window: others would lie in none")

    def run(self, bench: Bench) -> list[ScoreRow]:
        work = _Work.of(self, bench)
        whole = torch.arange(len(work.normal))
        once = [Trial(name, 1.0, 0, whole) for name in (PCA, POLYNOMIAL, "trained")]
        again = [Trial(name, 1.0, seed, whole) for name in ("random_net", "blind") for seed in range(self.seeds)]
        found = outcomes(bench, [*again, *once], work.judged)
        return self._rows(work, found)

    def _rows(self, work: _Work, found: dict[Trial, list[StepsJudged]]) -> list[ScoreRow]:
        steps, marked = sum(map(len, work.lines)), sum(int(_marks(line).sum()) for line in work.lines)
        facts = {"steps": steps, "anomalous": marked / steps, "border": work.border, "quantile": self.quantile}
        names = [line.name for line in work.lines]
        some = [number for number, line in enumerate(work.lines) if _marks(line).any()]

        def pooled(row: str, title: str, subject: str, of: Callable[[StepsJudged], StepCounts]) -> ScoreRow:
            records = {trial: [of(each) for each in series] for trial, series in found.items()}
            return scored(title, f"is the {subject} on {len(names)} series", records, names, measure=_f1, names=NAMES,
                          facts=facts, row=row)  # fmt: skip

        def mean(row: str, title: str, of: Callable[[StepsJudged], float], **rest: Any) -> ScoreRow:
            values = {trial: torch.tensor([of(series[number]) for number in some], dtype=torch.float64)
                      for trial, series in found.items()}  # fmt: skip
            return scored(title, f"is the mean over the {len(some)} series with anomalies", values,
                          [names[number] for number in some], names=NAMES, facts=facts, row=row, **rest)  # fmt: skip

        guess = float(np.mean([_marks(work.lines[number]).mean() for number in some]))
        return [
            pooled("f1", "anomalous steps: F1", "F1 of single steps", lambda each: each.plain),
            pooled("f1_adjusted", "anomalous steps: F1 with point adjustment, which flatters",
                   "F1 where one step finds a whole stretch", lambda each: each.adjusted),
            mean("auc_pr", "anomalous steps: AUC-PR", lambda each: each.auc_pr, chance=guess),
            mean("vus_pr", "anomalous steps: VUS-PR", lambda each: each.vus_pr),
        ]  # fmt: skip


def _f1(parts: Sequence[StepCounts]) -> float:
    return StepCounts(*(sum(values) for values in zip(*parts, strict=True))).f1


def _marks(line: LongSeries) -> np.ndarray:
    assert line.marks is not None
    return line.marks


@dataclass(frozen=True)
class _Work:
    """normal, calibrating: float32 [T, C] of the training part, scaled. lines: to be judged."""

    section: Anomaly
    bench: Bench
    subject: Subject
    takes: SeriesInput
    scale: Scale
    normal: list[np.ndarray]
    calibrating: list[np.ndarray]
    lines: list[LongSeries]
    border: int
    head: Head | None = None

    @classmethod
    def of(cls, section: Anomaly, bench: Bench) -> _Work:
        """A collective."""
        subject = bench.subject(section.backbone, "series")
        takes = subject.takes
        assert isinstance(takes, SeriesInput)
        need = "that the backbone takes"
        train, lines = (
            read_long_series(bench, url, limit=limit, field=name, channels=takes.channels, label=label)
            for name, url, limit, label in (("train", section.train, section.train_limit, None),
                                            ("queries", section.queries, section.query_limit, section.label))
        )  # fmt: skip
        refuse_later(bench.where, train, lines)
        train = long_enough(bench, train, takes.length, field="train", need=need)
        lines = long_enough(bench, lines, takes.length, field="queries", need=need)
        if not any(_marks(line).any() for line in lines):
            raise AgreedError(f"{bench.where}.queries: no step of {len(lines)} series is marked as anomalous, so there "
                              "is nothing to be found; allowed: series of which some have anomalies")  # fmt: skip
        scale = Scale.of(f"{bench.where}.train", train)
        scaled = [scale(line) for line in train]
        normal, calibrating = _parted(bench.where, scaled, takes.length)
        border = section.border or period_of(scaled, takes.length) or BORDER
        head = None if section.head is None else bench.head(section.head)
        return cls(section, bench, subject, takes, scale, normal, calibrating, lines, border, head)

    def judged(self, trial: Trial) -> list[StepsJudged]:
        """Of each series."""
        fitted = self._detector(trial)(self.normal)

        def score(rows: np.ndarray) -> np.ndarray:
            return finite(fitted(rows), "scores of steps")

        level = np.quantile(np.concatenate([score(rows) for rows in self.calibrating]), self.section.quantile)
        return [self._judged(_marks(line), score(self.scale(line)), float(level)) for line in self.lines]

    def _judged(self, truth: np.ndarray, scores: np.ndarray, level: float) -> StepsJudged:
        called, areas = scores > level, (float("nan"), float("nan"))
        if truth.any():
            areas = average_precision(truth, scores), vus_pr(truth, scores, self.border)
        return StepsJudged(StepCounts.of(truth, called), StepCounts.of(truth, point_adjusted(truth, called)), *areas)

    def _detector(self, trial: Trial) -> Detector:
        length = self.takes.length
        stride = self.section.stride or max(1, length // WINDOWS)
        if trial.contender == "blind":
            return at_random((self.bench.seed, trial.seed))
        if trial.contender == PCA:
            return principal_components(length, stride)
        if trial.contender == POLYNOMIAL:
            return polynomial(length)
        model = self.bench.network(self.subject, trial.contender, trial.seed)
        mean, std = (torch.from_numpy(each).float() for each in (self.scale.mean, self.scale.std))
        if trial.contender != "trained":
            some = StepWindows.of(self.normal, length, stride, whole=True)
            windows = some.take(range(0, len(some), max(1, len(some) // CALIBRATING)))
            set_norms(model, windows * std + mean, self.section.batch, self.bench.device)

        if self.head is not None:
            errors = self._errors(model, self.head, trial)
            return hidden_errors(errors, length, stride, self.section.batch)

        def encode(windows: Tensor) -> Tensor:
            with evaluating(model):
                tokens = tokens_of(model, (windows * std + mean).to(self.bench.device))
            return tokens.permute(0, 2, 1, 3).flatten(2).cpu()  # [B, P, C * D]

        return patch_memory(encode, length, stride, self.section.k, self.section.batch)


    def _errors(self, model: PreTrainedModel, head: Head, trial: Trial) -> Callable[[Tensor], Tensor]:
        """float32 [B, T] of windows [B, T, C]: the mean over channels, in deviations of the training part."""
        std = torch.from_numpy(self.scale.std).float().to(self.bench.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.bench.seed + trial.seed)
            size, width = head.tensors["weight"].shape
            filling = nn.Linear(width, size)
        if trial.contender == "trained":
            filling.load_state_dict(dict(head.tensors))
        filling.to(self.bench.device)

        def errors(windows: Tensor) -> Tensor:
            given = windows.to(self.bench.device)
            observed = given.isfinite()
            values = torch.where(observed, given, 0.0) * std
            with evaluating(model):
                found = errors_when_hidden(model, filling, values, observed, head.settings["ratio"])
            mean = (found / std.square()).sum(2) / observed.sum(2).clamp(min=1)
            return torch.where(mean.isnan(), mean.nanmean(1, keepdim=True), mean).cpu()

        return errors


def _parted(where: str, rows: Sequence[np.ndarray], length: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(what detectors remember, what sets the threshold): of a series the last fifth sets it, where that is a window
    and more; of others each fifth one as a whole."""
    normal: list[np.ndarray] = []
    calibrating: list[np.ndarray] = []
    short = 0
    for values in rows:
        last = len(values) // HELD
        if last >= length:
            normal.append(values[: len(values) - last])
            calibrating.append(values[len(values) - last :])
        else:
            short += 1
            (calibrating if short % HELD == 0 else normal).append(values)
    if not calibrating:
        raise AgreedError(f"{where}.train: {len(rows)} series of {max(map(len, rows))} steps at most; allowed: "
                          f"{HELD} series, or one of {HELD * length} steps: a fifth of what is normal "
                          "sets the threshold")  # fmt: skip
    return normal, calibrating
