"""How many directions the features of a network span, and whether that is a collapse: in words.

`health` is {backbone: {contender: {std, rankme, samples, of}}} (`bigssl.transfer.collapse`): RankMe is the effective
number of directions, of `of` that are possible. The same network with random weights shows what the architecture
passes on untrained: of a dozen it was 3 to 260, so no fixed number tells a collapse. One that was trained and spans
less than a tenth of what the random one does has lost nearly all of it; one that knows a dozen classes and nothing else
still spans a dozen. A single direction, that of the mean, tells nothing: it is taken off both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TENTH = 0.1
Health = Mapping[str, Mapping[str, Mapping[str, float]]]


def has_collapsed(trained: Mapping[str, float], random: Mapping[str, float]) -> bool:
    return trained["rankme"] - 1 < TENTH * (random["rankme"] - 1)


def health_rows(health: Health) -> list[dict[str, Any]]:
    """For each network and what it is compared with: backbone, contender in words, rankme, of, samples, std (None
    where it has no meaning)."""
    words = {"trained": "trained", "random_net": "random network"}
    return [{"backbone": backbone, "contender": words.get(name, name), "std": None, **values}
            for backbone, found in health.items() for name, values in found.items()]  # fmt: skip


def health_said(health: Health) -> list[str]:
    """A line for each backbone."""
    return [_line(backbone, found) for backbone, found in health.items()]


def _line(backbone: str, found: Mapping[str, Mapping[str, float]]) -> str:
    rows = health_rows({backbone: found})
    own, *others = [f"{row['contender']} {row['rankme']:.1f} of {row['of']:.0f}" for row in rows]
    said = f"features of {backbone}: RankMe {own.removeprefix('trained ')} directions ({', '.join(others)})"
    stds = [f"{row['contender']} {row['std']:.4f}" for row in rows if row["std"] is not None]
    return f"{said}; std of directions {', '.join(stds)}"


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
