"""How healthy the features of a network, and the embeddings of a run, are, and whether that is a collapse: in words.

`health` is {backbone: {contender: {MEASURE: number, samples, of}}} (`bigssl.transfer.collapse`): RankMe is the
effective number of directions, of `of` that are possible. The same network with random weights shows what the
architecture passes on untrained: of a dozen it was 3 to 260, so no fixed number tells a collapse. One that was trained
and spans less than a tenth of what the random one does has lost nearly all of it; one that knows a dozen classes and
nothing else still spans a dozen. A single direction, that of the mean, tells nothing: it is taken off both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

TENTH = 0.1
Health = Mapping[str, Mapping[str, Mapping[str, float]]]
PREFIX = "health/"
SCALE = {  # each measure from 0 (collapsed) to 1: what it says, and the number behind it (of how many)
    "span": ("directions that are spanned", "rankme", "of"),
    "discerned": ("directions that tell samples apart more than views", "lidar", "lidar_of"),
    "aligned": ("views of a sample alike", "alignment", ""),
    "uniform": ("samples spread evenly", "uniformity", ""),
    "spread": ("samples different", "std", ""),
}
TITLES = {"rankme": "RankMe", "lidar": "LiDAR", "alignment": "alignment", "uniformity": "uniformity", "std": "std"}


def has_collapsed(trained: Mapping[str, float], random: Mapping[str, float]) -> bool:
    return trained["rankme"] - 1 < TENTH * (random["rankme"] - 1)


def health_rows(health: Health) -> list[dict[str, Any]]:
    """For each network and what it is compared with: backbone, contender in words, rankme, of, samples, and the
    measures of SCALE with what is behind them (None where one has no meaning)."""
    words = {"trained": "trained", "random_net": "random network"}
    none = dict.fromkeys(("std", "spread"))
    return [{"backbone": backbone, "contender": words.get(name, name), **none, **values}
            for backbone, found in health.items() for name, values in found.items()]  # fmt: skip


def named_health(rows: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """{NAME: {MEASURE: its last finite number}} of the embeddings and features that were looked at while a network
    trained. rows: of `metrics.jsonl`."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith(PREFIX) and math.isfinite(value):
                name, _, measure = key.removeprefix(PREFIX).rpartition("/")
                found.setdefault(name, {})[measure] = value
    return found


def scaled_rows(rows: Iterable[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Of each name: name, and for each measure of SCALE its number as text with the raw one behind it, "–" where there
    is none."""
    return [{"name": name} | {scale: _scaled(values, scale) for scale in SCALE}
            for name, values in named_health(rows).items()]  # fmt: skip


def _scaled(values: Mapping[str, float], scale: str) -> str:
    _, raw, of = SCALE[scale]
    if scale not in values:
        return "–"
    behind = f" ({values[raw]:.3g}{f' of {values[of]:.0f}' if of else ''})" if raw in values else ""
    return f"{values[scale]:.2f}{behind}"


def health_said(health: Health) -> list[str]:
    """A line for each backbone."""
    return [_line(backbone, found) for backbone, found in health.items()]


def _line(backbone: str, found: Mapping[str, Mapping[str, float]]) -> str:
    rows = health_rows({backbone: found})
    own, *others = [f"{row['contender']} {row['rankme']:.1f} of {row['of']:.0f}" for row in rows]
    said = f"features of {backbone}: RankMe {own.removeprefix('trained ')} directions ({', '.join(others)})"
    stds = [f"{row['contender']} {row['std']:.4f}" for row in rows if row["std"] is not None]
    even = [f"{row['contender']} {row['uniform']:.2f}" for row in rows]
    return f"{said}; std of directions {', '.join(stds)}; uniformity (0 to 1) {', '.join(even)}"


def collapse_said(health: Health) -> list[str]:
    """A sentence for each backbone that has collapsed."""
    return [
        f"{backbone} has COLLAPSED: its features span about {found['trained']['rankme']:.1f} of "
        f"{found['trained']['of']:.0f} directions, those of the same network with random weights "
        f"{found['random_net']['rankme']:.1f}. Nearly all samples look alike to it; look at the losses and spreads of "
        "the report for when that began."
        for backbone, found in health.items()
        if "random_net" in found and has_collapsed(found["trained"], found["random_net"])
    ]
