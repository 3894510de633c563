"""How scores read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CARD_VERSION = 5  # of scorecard.json: what its rows hold
SHARE = "share"  # the unit of shares from 0 to 1, which are shown in percent


def shown(value: float | None, unit: str = SHARE) -> str:
    """`59.7 %` of a share, `4.68` of another unit (which stands beside it), `–` where there is none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if unit == SHARE else f"{value:.2f}"


def with_std(value: float | None, std: float | None, unit: str = SHARE) -> str:
    """`59.7 ± 1.2 %`, `4.68 ± 0.03`; without the deviation where there is none."""
    if value is None or std is None:
        return shown(value, unit)
    return f"{100 * value:.1f} ± {100 * std:.1f} %" if unit == SHARE else f"{value:.2f} ± {std:.2f}"


def with_unit(value: float, unit: str) -> str:
    """`59.7 %`, `4.68 nats`."""
    return shown(value, unit) + ("" if unit == SHARE else f" {unit}")


def raws_said(task: Mapping[str, Any]) -> str:
    """Which raw baselines a row of the scorecard has, the one that counts first; "" where there is no choice."""
    if len(task["raws"]) < 2:
        return ""
    said = ", ".join(f"{name} {shown(value, task['unit'])}" for name, value in task["raws"].items())
    return f"{task['title']}: raw input is {said}; the best on these queries counts, a choice in its favour."


CURVE = {"random_net": "random net", "raw": "raw", "trained": "trained"}  # contenders of a curve, in words


def curve_rows(task: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The few-label curve of a row of the scorecard as cells, headings first; none of one that has a single point."""
    curve = task.get("curve", [])
    names = [name for name in CURVE if any(name in point["means"] for point in curve)]
    if len(curve) < 2:
        return []
    rows = [(f"{100 * point['fraction']:g} % ({point['samples']:,})",
             *(with_std(point["means"].get(name), point["stds"].get(name), task["unit"]) for name in names))
            for point in curve]  # fmt: skip
    return [("samples with labels", *(CURVE[name] for name in names)), *rows]
