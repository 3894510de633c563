"""How scores read."""

from __future__ import annotations

CARD_VERSION = 2  # of scorecard.json: what its rows hold
SHARE = "share"  # the unit of shares from 0 to 1, which are shown in percent


def shown(value: float | None, unit: str = SHARE) -> str:
    """`59.7 %` of a share, `4.68` of another unit (which stands beside it), `–` where there is none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if unit == SHARE else f"{value:.2f}"


def with_unit(value: float, unit: str) -> str:
    """`59.7 %`, `4.68 nats`."""
    return shown(value, unit) + ("" if unit == SHARE else f" {unit}")
