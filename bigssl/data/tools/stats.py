"""A survey in numbers: distributions per field, duplicates, and how many samples each rule would drop."""

from __future__ import annotations

from typing import Any

import numpy as np

from bigssl.data.errors import display
from bigssl.data.tools.rules import RULES, Thresholds, first_of_equals, judge_samples, meaning
from bigssl.data.tools.survey import Survey

PERCENTILES = {"min": 0, "p1": 1, "p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95, "p99": 99, "max": 100}


def statistics(survey: Survey, thresholds: Thresholds) -> dict[str, Any]:
    """What `bigssl shards stats --json` prints; all of it is JSON.

    fields.NAME: samples that have it, duplicates (samples whose bytes an earlier one has), measures (min ... max of
    those in `Survey`, mean, sum). rules.NAME: what it says, samples under it.
    """
    index = survey.index
    verdicts = judge_samples(survey, list(RULES), thresholds)
    return {
        "url": display(index.url),
        "samples": len(index),
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "samples_per_shard": distribution(np.array([shard.samples for shard in index.shards])),
        "fields": {name: _field(survey, name) for name in sorted(survey.digests)},
        "rules": {
            name: {"meaning": meaning(name, thresholds), "samples": sum(verdict.rule == name for verdict in verdicts)}
            for name in RULES
        },
    }


def _field(survey: Survey, name: str) -> dict[str, Any]:
    measures = {measure.name: column for measure, column in survey.columns.items() if measure.field == name}
    firsts = first_of_equals(survey, [name])
    return {
        "samples": int(np.count_nonzero(~np.isnan(measures["bytes"]))),
        "duplicates": int(np.count_nonzero(firsts != np.arange(len(firsts)))),
        "measures": {what: distribution(column[~np.isnan(column)]) for what, column in measures.items()},
    }


def distribution(values: np.ndarray) -> dict[str, float]:
    """Percentiles, mean and sum of numbers, at least one."""
    levels = np.percentile(values, list(PERCENTILES.values()))
    return {
        **dict(zip(PERCENTILES, levels.tolist(), strict=True)),
        "mean": float(values.mean()),
        "sum": float(values.sum()),
    }


def table(facts: dict[str, Any]) -> str:
    """The same for a reader."""
    total = f"{facts['samples']} samples in {facts['shards']} shards, {facts['bytes']:,} bytes"
    shown = ["min", "p5", "p50", "p95", "max", "mean"]
    rows = [["FIELD", "MEASURE", "SAMPLES", *(name.upper() for name in shown)]]
    for name, field in facts["fields"].items():
        for what, levels in field["measures"].items():
            rows.append([name, what, str(field["samples"]), *(f"{levels[level]:,.4g}" for level in shown)])
    repeats = [["FIELD", "SAMPLES WHOSE BYTES AN EARLIER ONE HAS"]]
    repeats += [[name, str(field["duplicates"])] for name, field in facts["fields"].items()]
    rules = [["RULE", "SAMPLES", "MEANING"]]
    rules += [[name, str(rule["samples"]), rule["meaning"]] for name, rule in facts["rules"].items()]
    return "\n\n".join([f"{facts['url']}: {total}", *map(aligned, (rows, repeats, rules))])


def aligned(rows: list[list[str]]) -> str:
    """Lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
