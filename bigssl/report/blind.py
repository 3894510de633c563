"""Whether a loss ended below that of the best predictor that does not see the input: in words, for a person."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from bigssl.report.metrics import Measure

LEAST, SHARE = 20, 0.1  # records that a verdict looks at: the last tenth, 20 at least


@dataclass(frozen=True)
class BlindVerdict:
    """name of the loss (empty: the only one), means of `loss` and `blind` over the last records, in `unit`."""

    name: str
    loss: float
    blind: float
    below: bool  # by more than two standard errors
    sentence: str


def verdicts(rows: Sequence[Mapping[str, float]], measures: Mapping[str, Measure]) -> list[BlindVerdict]:
    """One for each loss that is not a sum of others, in order; none where nothing finite was recorded.

    Blind values are of the same batches as the losses: their paired differences carry less noise than either curve.

    Args:
        rows: of `metrics.jsonl`.
        measures: what each loss is measured in, by its name there (and others, which are passed over).
    """
    losses = [name for name in measures if name.partition("/")[0] == "loss"]
    leaves = [name for name in losses if not any(other.startswith(f"{name}/") for other in losses)]
    found = [_verdict(name, rows, measures[name]) for name in leaves]
    return [verdict for verdict in found if verdict is not None]


def _verdict(name: str, rows: Sequence[Mapping[str, float]], measure: Measure) -> BlindVerdict | None:
    beside = name.replace("loss", "blind", 1)
    known = [row for row in rows if math.isfinite(row.get(name, math.nan) + row.get(beside, math.nan))]
    last = known[-max(LEAST, round(SHARE * len(known))) :]
    if not last:
        return None
    gains = [row[beside] - row[name] for row in last]
    gain, error = fmean(gains), stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    loss, blind, below = fmean(row[name] for row in last), fmean(row[beside] for row in last), gain > 2 * error
    part = name.removeprefix("loss").removeprefix("/")
    after = f"after {last[-1]['step']:.0f} steps"
    if below:
        said = f"{gain:.2f} {measure.unit} below its blind line ({measure.blind}, {blind:.2f}) {after}"
    else:
        said = f"no better than {measure.blind} {after} ({loss:.2f} at {blind:.2f} {measure.unit})"
    return BlindVerdict(part, loss, blind, below, f"{part or 'loss'}: {said}")
