"""What a row of the scorecard says, and how sure one can be of it: the same for hits and for values of any unit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from math import isfinite
from statistics import stdev, variance
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigssl.report.values import SHARE, with_unit

BASELINES = ("majority", "blind", "random_net", "raw")
RAW = "raw/"  # begins the names of raw baselines of which there may be several; their words follow
SHORT = {"majority": "majority class", "blind": "a blind guess", "random_net": "random network", "raw": "raw input"}
NAMES = {"majority": "the most frequent class", "blind": "the best guess that does not see the input",
         "random_net": "the same network with random weights", "raw": "the raw input"}  # fmt: skip


class Point(NamedTuple):
    """Of the few-label curve. numbers: by contender, (mean over the seeds, standard deviation or None of one seed)."""

    fraction: float
    samples: int
    numbers: Mapping[str, tuple[float, float | None]]


@dataclass(frozen=True)
class ScoreRow(ABC):
    """One row: how the trained network and its baselines did.

    Contenders are "trained", and of the baselines "majority" (the most frequent class), "blind" (the best predictor
    that does not see the input), "random_net", "raw" those that make sense, "raw" as "raw/WORDS" where there may be
    several: each has to be beaten, the best counts as "raw".

    Attributes:
        title: of the row.
        subject: what follows the number in its sentence, e.g. "of 764 images find their category".
        chance: what guessing reaches.
        unit: of the numbers; `SHARE` for hits.
        names: "raw" and "blind" in words of its own, e.g. "raw pixels".
        facts: sizes and settings.
        row: name beside the evaluation's, of one that has several rows.
        seeds: of an evaluation that is repeated, by contender its number with each seed.
        curve: the same by shares of the labels, ascending; the last one is that of the row.
    """

    title: str
    subject: str
    _: KW_ONLY
    chance: float | None = None
    unit: str = SHARE
    higher_is_better: bool = True
    names: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    row: str = ""
    seeds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    curve: Sequence[Point] = ()

    @property
    @abstractmethod
    def contenders(self) -> list[str]: ...

    @property
    @abstractmethod
    def queries(self) -> int: ...

    @abstractmethod
    def mean(self, name: str) -> float:
        """The number of a contender."""

    @abstractmethod
    def error(self) -> float:
        """The standard error of trained over the queries; infinite where one group cannot tell."""

    @abstractmethod
    def ahead(self, name: str) -> tuple[float, float]:
        """(trained - a baseline, the standard error of this paired difference over the queries)."""

    def __post_init__(self) -> None:
        strange = ({*self.contenders, *self.names, *self.seeds}) - {*BASELINES, "trained"}
        if "trained" not in self.contenders or any(not name.startswith(RAW) for name in strange):
            there, allowed = ", ".join([*self.contenders, *self.names, *self.seeds]), ", ".join(BASELINES)
            raise ValueError(f"{self.title}: values and names of {there}; allowed: trained, and of {allowed}")

    def better(self, one: float, other: float) -> bool:
        return one > other if self.higher_is_better else one < other

    @property
    def raws(self) -> list[str]:
        """The raw baselines, the best one first."""
        names = [name for name in self.contenders if name == "raw" or name.startswith(RAW)]
        return sorted(names, key=self.mean, reverse=self.higher_is_better)

    def words(self, name: str, otherwise: Mapping[str, str]) -> str:
        """What a baseline is called: as the task says, or else as `otherwise` does."""
        return words_of(name) if name.startswith(RAW) else (dict(otherwise) | dict(self.names))[name]

    def stderr(self) -> float | None:
        """The standard error of trained over queries and seeds; None where one group cannot tell."""
        return _together(self.error(), [self.seeds.get("trained", ())])

    def gain(self, name: str) -> dict[str, Any]:
        """How far trained is ahead of a baseline, in the better direction, with the standard error of the difference,
        paired by query and by seed (contenders learn from the same samples with the same one); None where one group
        cannot tell."""
        mean, error = self.ahead(name)
        ours, theirs = (self.seeds.get(each, ()) for each in ("trained", name))
        paired = [one - other for one, other in zip(ours, theirs, strict=False)]
        error_of = _together(error, [paired] if len(ours) == len(theirs) else [ours, theirs])
        return {"difference": mean if self.higher_is_better else -mean, "stderr": error_of}


@dataclass(frozen=True)
class Score(ScoreRow):
    """A row whose number is a mean over queries.

    Attributes:
        values: [N] by contender, hits or real values. Where there are `weights`, sums over the parts of a query. Of an
            evaluation that is repeated, the mean over the seeds.
        groups: what each of the N queries belongs to; different groups are independent.
        weights: [N] how many parts (tokens) each query has.

    Raises:
        ValueError: another contender, none that is trained, or values of another number of queries.
    """

    values: Mapping[str, Tensor]
    groups: Sequence[str]
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {name: len(each) for name, each in self.values.items()}
        sizes |= {} if self.weights is None else {"weights": len(self.weights)}
        if set(sizes.values()) != {len(self.groups)}:
            raise ValueError(f"{self.title}: {sizes} of {len(self.groups)} queries; allowed: one value of each query")

    @property
    def contenders(self) -> list[str]:
        return list(self.values)

    @property
    def queries(self) -> int:
        return len(self.groups)

    def mean(self, name: str) -> float:
        """Of all parts of all queries."""
        total = self.values[name].double().sum()
        return (total / (len(self.groups) if self.weights is None else self.weights.double().sum())).item()

    def error(self) -> float:
        return clustered_mean(self.values["trained"], self.groups, self.weights)[1]

    def ahead(self, name: str) -> tuple[float, float]:
        difference = self.values["trained"].double() - self.values[name].double()
        return clustered_mean(difference, self.groups, self.weights)


def majority_hits(labels: Sequence[str]) -> Tensor:
    """bool [N]: what always answering the most frequent of these labels gets right (ties: the first by name)."""
    counts = Counter(labels)
    best = min(counts, key=lambda name: (-counts[name], name))
    return torch.tensor([label == best for label in labels])


def clustered_mean(values: Tensor, groups: Sequence[str], weights: Tensor | None = None) -> tuple[float, float]:
    """(mean, its standard error) of values [N] when only different groups are independent.

    Two pictures of one item tend to be right or wrong together; counted as independent they would look like twice the
    evidence. With groups of one this is the usual σ/√(N − 1). With weights [N], values are sums over that many parts
    and the mean is that of the parts, a ratio of two sums. (Liang and Zeger 1986; Cochran 1977, section 6.) Infinite
    where there is one group.
    """
    weights = torch.ones(len(values)) if weights is None else weights
    total = weights.double().sum().item()
    mean = values.double().sum().item() / total
    sums: dict[str, float] = {}
    for group, deviation in zip(groups, (values.double() - mean * weights.double()).tolist(), strict=True):
        sums[group] = sums.get(group, 0.0) + deviation
    if len(sums) < 2:
        return mean, math.inf
    spread = math.sqrt(sum(s * s for s in sums.values()) * len(sums) / (len(sums) - 1))
    return mean, spread / total


def _together(error: float, repeated: Sequence[Sequence[float]]) -> float | None:
    """The standard error of what has one of `error` over the queries, and is a sum of means over independent seeds: the
    numbers of the queries are means over them, so they do not show how far another seed may lie."""
    squares = error**2 + sum(variance(each) / len(each) for each in repeated if len(each) > 1)
    return math.sqrt(squares) if isfinite(squares) else None


def words_of(name: str) -> str:
    """A contender in words, without "raw/" before those of a raw baseline."""
    return name.removeprefix(RAW)


def row_of(score: ScoreRow) -> dict[str, Any]:
    """The row as it stands in the scorecard (its keys: see `bigssl.transfer.scorecard`)."""
    named = {name: score.words(name, NAMES) for name in score.contenders if name != "trained"}
    gains = {name: score.gain(name) for name in named}
    best = {"raw": score.raws[0]} if score.raws else {}
    shown = {name: name for name in score.contenders if not name.startswith(RAW)} | best
    means = {name: score.mean(of) for name, of in shown.items()}
    row: dict[str, Any] = {"title": score.title, **score.facts, "queries": score.queries, "unit": score.unit}
    row |= {"higher_is_better": score.higher_is_better, "chance": score.chance}
    row |= {name: means.get(name) for name in (*BASELINES, "trained")}
    row |= {f"{name}_name": named[of] for name, of in shown.items() if name in ("blind", "raw")}
    row |= {"raws": {named[name]: score.mean(name) for name in score.raws}}
    row |= {"stderr": score.stderr()} | _repeated(score, best)
    row |= {"gains": gains | {name: gains[of] for name, of in best.items()}}
    row |= {f"trained_beats_{name}": gains[of]["difference"] > 0 for name, of in shown.items() if of in gains}
    if "raw" in means and "random_net" in means:
        row["raw_beats_random_net"] = score.better(means["raw"], means["random_net"])
    ahead = score.chance is None or score.better(means["trained"], score.chance)
    row["passed"] = ahead and all(gain["difference"] > 0 for gain in gains.values())
    row["verdict"] = _verdict(gains, {name: score.words(name, SHORT) for name in gains}, ahead)
    row["sentence"] = _sentence(score, means, {named[name]: gain for name, gain in gains.items()})
    return row


def _verdict(gains: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], above_chance: bool) -> str:
    behind = [names[name] for name, gain in gains.items() if gain["difference"] <= 0]
    if behind or not above_chance:
        return "not better than " + ", ".join(behind or ["chance"])
    unsure = [
        names[name] for name, gain in gains.items()
        if gain["stderr"] is None or gain["difference"] < 2 * gain["stderr"]
    ]  # fmt: skip
    return "ahead of all, but within noise of " + ", ".join(unsure) if unsure else "better than all"


def _repeated(score: ScoreRow, best: Mapping[str, str]) -> dict[str, Any]:
    """Numbers by seed and by share of the labels; of the `best` raw baseline, as "raw", too."""

    def beside(numbers: Mapping[str, Any]) -> dict[str, Any]:
        return dict(numbers) | {name: numbers[of] for name, of in best.items() if of in numbers}

    seeds = beside({name: list(each) for name, each in score.seeds.items()})
    curve = [{"fraction": point.fraction, "samples": point.samples,
              "means": beside({name: mean for name, (mean, _) in point.numbers.items()}),
              "stds": beside({name: std for name, (_, std) in point.numbers.items()})} for point in score.curve]
    return {"seeds": seeds, "std": {name: deviation(each) for name, each in seeds.items()}, "curve": curve}


def deviation(numbers: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None of one number, NaN where one is not finite."""
    if not all(map(isfinite, numbers)):
        return math.nan
    return stdev(numbers) if len(numbers) > 1 else None


def _sentence(score: ScoreRow, means: Mapping[str, float], gains: Mapping[str, Mapping[str, Any]]) -> str:
    said = f"{with_unit(means['trained'], score.unit)}{_spread(score)} {score.subject}"
    aside = [] if score.chance is None else [f"guessing: {with_unit(score.chance, score.unit)}"]
    aside += [] if score.higher_is_better else ["lower is better"]
    parts = [_compared(score, gain, name) for name, gain in gains.items()]
    against = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else ""
    return said + (f" ({'; '.join(aside)})" if aside else "") + (f"; {against}." if against else ".")


def _spread(score: ScoreRow) -> str:
    """` ± 1.2 points over 3 seeds`, "" of what is not repeated."""
    seeds = score.seeds.get("trained", ())
    if (std := deviation(seeds)) is None:
        return " with one seed" if seeds else ""
    said = f"{100 * std:.1f} points" if score.unit == SHARE else f"{std:.2f}"
    return f" ± {said} over {len(seeds)} seeds"


def _compared(score: ScoreRow, gain: Mapping[str, Any], name: str) -> str:
    """`3.2 ± 1.1 points more than raw pixels`, `1.35 ± 0.10 nats less than token frequencies`."""
    share = score.unit == SHARE
    scale, digits, unit = (100, 1, "points") if share else (1, 2, score.unit)
    error = "unknown" if gain["stderr"] is None else f"{scale * gain['stderr']:.{digits}f}"
    raw = gain["difference"] if score.higher_is_better else -gain["difference"]
    if raw == 0:
        return f"exactly as {'many' if share else 'much'} (± {error} {unit}) as {name}"
    more, less = ("more", "fewer") if share else ("more", "less")
    return f"{scale * abs(raw):.{digits}f} ± {error} {unit} {more if raw > 0 else less} than {name}"
