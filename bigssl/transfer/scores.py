"""What a row of the scorecard says, and how sure one can be of it: the same for hits and for values of any unit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bigssl.report.values import SHARE, with_unit

BASELINES = ("majority", "blind", "random_net", "raw")
RAW = "raw/"  # begins the names of raw baselines of which there may be several; their words follow
SHORT = {"majority": "majority class", "blind": "a blind guess", "random_net": "random network", "raw": "raw input"}
NAMES = {"majority": "the most frequent class", "blind": "the best guess that does not see the input",
         "random_net": "the same network with random weights", "raw": "the raw input"}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """One row: how the trained network and its baselines did at each query.

    Attributes:
        title: of the row.
        subject: what follows the number in its sentence, e.g. "of 764 images find their category".
        values: [N] by contender, hits or real values: "trained", and of its baselines "majority" (the most frequent
            class), "blind" (the best predictor that does not see the input), "random_net", "raw" those that make sense,
            "raw" as "raw/WORDS" where there may be several: each has to be beaten, the best counts as "raw".
            Where there are `weights`, sums over the parts of a query.
        groups: what each of the N queries belongs to; different groups are independent.
        chance: what guessing reaches.
        weights: [N] how many parts (tokens) each query has.
        unit: of the values; `SHARE` for hits.
        names: "raw" and "blind" in words of its own, e.g. "raw pixels".
        facts: sizes and settings.
        row: name beside the evaluation's, of one that has several rows.

    Raises:
        ValueError: another contender, none that is trained, or values of another number of queries.
    """

    title: str
    subject: str
    values: Mapping[str, Tensor]
    groups: Sequence[str]
    chance: float | None = None
    weights: Tensor | None = None
    unit: str = SHARE
    higher_is_better: bool = True
    names: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    row: str = ""

    def __post_init__(self) -> None:
        strange = (self.values.keys() | self.names.keys()) - {*BASELINES, "trained"}
        if "trained" not in self.values or any(not name.startswith(RAW) for name in strange):
            there, allowed = ", ".join([*self.values, *self.names]), ", ".join(BASELINES)
            raise ValueError(f"{self.title}: values and names of {there}; allowed: trained, and of {allowed}")
        sizes = {name: len(each) for name, each in self.values.items()}
        sizes |= {} if self.weights is None else {"weights": len(self.weights)}
        if set(sizes.values()) != {len(self.groups)}:
            raise ValueError(f"{self.title}: {sizes} of {len(self.groups)} queries; allowed: one value of each query")

    def better(self, one: float, other: float) -> bool:
        return one > other if self.higher_is_better else one < other

    def mean(self, name: str) -> float:
        """Of all parts of all queries."""
        total = self.values[name].double().sum()
        return (total / (len(self.groups) if self.weights is None else self.weights.double().sum())).item()

    @property
    def raws(self) -> list[str]:
        """The raw baselines among `values`, the best one first."""
        names = [name for name in self.values if name == "raw" or name.startswith(RAW)]
        return sorted(names, key=self.mean, reverse=self.higher_is_better)

    def words(self, name: str, otherwise: Mapping[str, str]) -> str:
        """What a baseline is called: as the task says, or else as `otherwise` does."""
        return words_of(name) if name.startswith(RAW) else (dict(otherwise) | dict(self.names))[name]

    def gain(self, name: str) -> dict[str, Any]:
        """How far trained is ahead of a baseline, in the better direction, with the standard error of the paired
        difference; null where one group cannot tell."""
        difference = self.values["trained"].double() - self.values[name].double()
        better = difference if self.higher_is_better else -difference
        mean, error = clustered_mean(better, self.groups, self.weights)
        return {"difference": mean, "stderr": error if math.isfinite(error) else None}


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


def words_of(name: str) -> str:
    """A contender in words, without "raw/" before those of a raw baseline."""
    return name.removeprefix(RAW)


def row_of(score: Score) -> dict[str, Any]:
    """The row as it stands in the scorecard (its keys: see `bigssl.transfer.scorecard`)."""
    named = {name: score.words(name, NAMES) for name in score.values if name != "trained"}
    gains = {name: score.gain(name) for name in named}
    best = {"raw": score.raws[0]} if score.raws else {}
    shown = {name: name for name in score.values if not name.startswith(RAW)} | best
    means = {name: score.mean(of) for name, of in shown.items()}
    error = clustered_mean(score.values["trained"], score.groups, score.weights)[1]
    row: dict[str, Any] = {"title": score.title, **score.facts, "queries": len(score.groups), "unit": score.unit}
    row |= {"higher_is_better": score.higher_is_better, "chance": score.chance}
    row |= {name: means.get(name) for name in (*BASELINES, "trained")}
    row |= {f"{name}_name": named[of] for name, of in shown.items() if name in ("blind", "raw")}
    row |= {"raws": {named[name]: score.mean(name) for name in score.raws}}
    row |= {"stderr": error if math.isfinite(error) else None}
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


def _sentence(score: Score, means: Mapping[str, float], gains: Mapping[str, Mapping[str, Any]]) -> str:
    said = f"{with_unit(means['trained'], score.unit)} {score.subject}"
    aside = [] if score.chance is None else [f"guessing: {with_unit(score.chance, score.unit)}"]
    aside += [] if score.higher_is_better else ["lower is better"]
    parts = [_compared(score, gain, name) for name, gain in gains.items()]
    against = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else ""
    return said + (f" ({'; '.join(aside)})" if aside else "") + (f"; {against}." if against else ".")


def _compared(score: Score, gain: Mapping[str, Any], name: str) -> str:
    """`3.2 ± 1.1 points more than raw pixels`, `1.35 ± 0.10 nats less than token frequencies`."""
    share = score.unit == SHARE
    scale, digits, unit = (100, 1, "points") if share else (1, 2, score.unit)
    error = "unknown" if gain["stderr"] is None else f"{scale * gain['stderr']:.{digits}f}"
    raw = gain["difference"] if score.higher_is_better else -gain["difference"]
    if raw == 0:
        return f"exactly as {'many' if share else 'much'} (± {error} {unit}) as {name}"
    more, less = ("more", "fewer") if share else ("more", "less")
    return f"{scale * abs(raw):.{digits}f} ± {error} {unit} {more if raw > 0 else less} than {name}"
