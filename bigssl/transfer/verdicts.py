"""What a comparison says, and how sure one can be of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SHORT = {"majority": "majority class", "random_net": "random network"}
NAMES = {"majority": "the most frequent class", "random_net": "the same network with random weights"}


def majority_hits(labels: Sequence[str]) -> Tensor:
    """bool [N]: what always answering the most frequent of these labels gets right (ties: the first by name)."""
    counts = Counter(labels)
    best = min(counts, key=lambda name: (-counts[name], name))
    return torch.tensor([label == best for label in labels])


def clustered_stderr(values: Tensor, groups: Sequence[str]) -> float:
    """Standard error of the mean of values [N] when only different groups are independent.

    Two pictures of one item tend to be right or wrong together; counted as independent they would look like twice the
    evidence. With groups of one this is the usual σ/√N. (Liang and Zeger 1986.)
    """
    sums: dict[str, float] = {}
    for group, deviation in zip(groups, (values.double() - values.double().mean()).tolist(), strict=True):
        sums[group] = sums.get(group, 0.0) + deviation
    return math.sqrt(sum(s * s for s in sums.values())) / len(values)


def task_of(title: str, subject: str, hits: Mapping[str, Tensor], *, chance: float, groups: Sequence[str],
            raw_name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """One task of the scorecard (its keys: see `bigssl.transfer.scorecard`).

    Args:
        subject: beginning of the sentence, e.g. "of 764 images find their category".
        hits: bool [N] each: "trained" and its baselines, of "majority", "random_net", "raw".
        groups: what each of the N queries belongs to; different groups are independent.
        raw_name: what "raw" is, e.g. "raw pixels".
    """
    names = NAMES | {"raw": raw_name}
    rate = {name: each.double().mean().item() for name, each in hits.items()}
    gains = {name: _gain(hits["trained"], each, groups) for name, each in hits.items() if name != "trained"}
    task: dict[str, Any] = {"title": title, **facts, "queries": len(groups), "chance": chance}
    task |= {name: rate.get(name) for name in ("majority", "random_net", "raw", "trained")}
    task |= {"raw_name": raw_name, "stderr": clustered_stderr(hits["trained"], groups), "gains": gains}
    task |= {f"trained_beats_{name}": gain["difference"] > 0 for name, gain in gains.items()}
    if "raw" in rate and "random_net" in rate:
        task["raw_beats_random_net"] = rate["raw"] > rate["random_net"]
    task["passed"] = rate["trained"] > chance and all(gain["difference"] > 0 for gain in gains.values())
    task["verdict"] = _verdict(gains, SHORT | {"raw": raw_name}, rate["trained"] > chance)
    task["sentence"] = _sentence(rate["trained"], subject, gains, names, chance)
    return task


def _gain(trained: Tensor, baseline: Tensor, groups: Sequence[str]) -> dict[str, float]:
    difference = trained.double() - baseline.double()
    return {"difference": difference.mean().item(), "stderr": clustered_stderr(difference, groups)}


def _verdict(gains: Mapping[str, Mapping[str, float]], names: Mapping[str, str], above_chance: bool) -> str:
    behind = [names[name] for name, gain in gains.items() if gain["difference"] <= 0]
    if behind or not above_chance:
        return "not better than " + ", ".join(behind or ["chance"])
    unsure = [names[name] for name, gain in gains.items() if gain["difference"] < 2 * gain["stderr"]]
    return "ahead of all, but within noise of " + ", ".join(unsure) if unsure else "better than all"


def _sentence(trained: float, subject: str, gains: Mapping[str, Mapping[str, float]], names: Mapping[str, str],
              chance: float) -> str:
    def compared(name: str, gain: Mapping[str, float]) -> str:
        points, error = 100 * gain["difference"], 100 * gain["stderr"]
        if points == 0:
            return f"exactly as many (± {error:.1f} points) as {names[name]}"
        return f"{abs(points):.1f} ± {error:.1f} points {'more' if points > 0 else 'fewer'} than {names[name]}"

    parts = [compared(name, gain) for name, gain in gains.items()]
    against = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else ""
    return f"{100 * trained:.1f} % {subject} (guessing: {100 * chance:.1f} %); {against}."
