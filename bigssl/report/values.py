"""How scores read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CARD_VERSION = 3  # of scorecard.json: what its rows hold
SHARE = "share"  # the unit of shares from 0 to 1, which are shown in percent


def shown(value: float | None, unit: str = SHARE) -> str:
    """`59.7 %` of a share, `4.68` of another unit (which stands beside it), `–` where there is none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if unit == SHARE else f"{value:.2f}"


def with_unit(value: float, unit: str) -> str:
    """`59.7 %`, `4.68 nats`."""
    return shown(value, unit) + ("" if unit == SHARE else f" {unit}")


def raws_said(task: Mapping[str, Any]) -> str:
    """Which raw baselines a row of the scorecard has, the one that counts first; "" where there is no choice."""
    if len(task["raws"]) < 2:
        return ""
    said = ", ".join(f"{name} {shown(value, task['unit'])}" for name, value in task["raws"].items())
    return f"{task['title']}: raw input is {said}; the best on these queries counts, a choice in its favour."
