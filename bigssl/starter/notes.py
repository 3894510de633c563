"""What a first recipe says of itself: its head, a remark beside each value, and what could not be judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from bigssl.data.tools.classes import LABEL
from bigssl.objectives.base import Objective
from bigssl.starter.drafting import Parts
from bigssl.starter.looking import Look

SHOWN = 8  # classes by name
_STEP = 0.03  # seconds of a step beside those of its samples


def head_lines(command: str, file: str, minutes: str) -> list[str]:
    """Lines of comment above a recipe."""
    return [
        f"Command: bigssl train {file}",
        f"Time:    {minutes} on 2 CPU cores",
        "Expect:  a loss below its blind line; on what is held out, a network above the same one at random weights",
        f"Made by: {command}",
        "All paths are relative to the folder in which the command is typed.",
    ]


def remarks(values: Mapping[str, Any], kind: type[Objective], parts: Parts) -> dict[str, str]:
    """By dotted field, what it does or what to raise."""
    steps, batch = values["steps"], values["batch"]["size"]
    passes = steps * batch / parts.look.samples
    found = {
        "steps": f"{passes:.3g} passes over {parts.look.samples} samples; a real run has 10 to 100 times as many",
        "objective.name": (kind.__doc__ or "").split("\n")[0],
        "batch": "over all ranks; contrasts gain by more; a larger one wants a larger lr",
        "optim": "lr rises over the share `warmup` of the steps, then falls to 0",
        "checkpoint": "the same command goes on from the newest; there is one at the end, too",
        "evaluate": "the scorecard at the end, beside random weights and the raw input",
        "probe": "the same while it trains, on few samples",
    }
    found |= _beside(kind.Config, kind.starts, "objective")
    for name, backbone in values["backbones"].items():
        if "window" in backbone:
            found[f"backbones.{name}.window"] = "stored values that become 0 and 255: most pixels looked at are between"
        found[f"backbones.{name}.config"] = "a small one; without these lines it has the usual size of its type"
    return found


def _beside(section: type[BaseModel], values: Mapping[str, Any], path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        info, here = section.model_fields[name], f"{path}.{name}"
        if isinstance(value, Mapping):
            found |= _beside(type(info.default), value, here)
            continue
        default = "" if info.is_required() or info.default in (None, value) else f"; default {info.default}"
        found[here] = f"{info.description or name}{default}"
    return found


def unjudged(judged: Mapping[str, Any], parts: Parts, again: str) -> list[str]:
    """Lines of comment about what `evaluate` lacks. again: the command that made the recipe."""
    stands = "The verdict of the run on its loss, beside the blind line, stands."
    if not parts.held:
        return [f"Nothing is judged at the end: {parts.why}.", stands]
    lines = [] if judged else ["Nothing is judged at the end: the samples have no label.", stands]
    others = {name: len(values) for name, values in parts.look.classes().items() if name != LABEL}
    if others and not any("label" in section for section in judged.values()):
        named = ", ".join(f"{name} ({count} values)" for name, count in others.items())
        lines += [f"Fields of the json that may be labels: {named}. To judge by one:"]
        lines += [f"{again} --label {next(iter(others))} --overwrite"]
    return lines


def minutes_of(values: Mapping[str, Any]) -> str:
    """How long a run takes, by what a sample of each modality cost on two cores of a server."""
    samples = values["batch"]["size"] * sum(map(_seconds, values["backbones"].values()))
    seconds = values["steps"] * (_STEP + samples)
    return "about a minute" if seconds < 80 else f"about {max(2, round(seconds / 60))} minutes"


def _seconds(backbone: Mapping[str, Any]) -> float:
    if "size" in backbone:
        return 0.001 + 0.003 * (backbone["size"] / 64) ** 2
    return 0.002 * min(backbone["length"], 64) / 64


def classes_in_words(look: Look, label: str) -> str:
    """The classes with their counts, the most frequent first."""
    values: Counter[str] = look.labels[label]
    some = ", ".join(f"{name} {count}" for name, count in values.most_common(SHOWN))
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    of = f" in {look.looked} of {look.samples} samples" if look.looked < look.samples else ""
    return f"{label}: {len(values)} classes{of} ({some}{more})"
