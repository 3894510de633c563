"""A survey in numbers: distributions per field, duplicates, and how many samples each rule would drop."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from bigssl.data.errors import display
from bigssl.data.tools.rules import RULES, Thresholds, first_of_equals, judge_samples, meaning
from bigssl.data.tools.survey import Survey
from bigssl.data.tools.texts.rewriting import REWRITES
from bigssl.data.tools.texts.rules import TEXT_RULES

EXAMPLES = 3  # of a rule
PERCENTILES = {"min": 0, "p1": 1, "p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95, "p99": 99, "max": 100}


def statistics(survey: Survey, thresholds: Thresholds) -> dict[str, Any]:
    """What `bigssl shards stats --json` prints; all of it is JSON.

    fields.NAME: samples that have it, duplicates (samples whose bytes an earlier one has), measures (min ... max of
    those in `Survey`, mean, sum). scripts.NAME: letters of all texts in it. rules.NAME: what it says; samples that it
    would drop by itself, their share, the first of them with what was measured; or why it cannot be asked.
    rewrites.NAME: the same of those it would change.
    """
    index = survey.index
    scripts = sum((document.scripts for document in survey.documents.values()), Counter[str]())
    return {
        "url": display(index.url),
        "samples": len(index),
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "samples_per_shard": distribution(np.array([shard.samples for shard in index.shards])),
        "fields": {name: _field(survey, name) for name in sorted(survey.digests)},
        "scripts": dict(scripts.most_common()),
        "rules": {name: _rule(survey, name, thresholds) for name in RULES},
        "rewrites": {
            name: {"meaning": rule.meaning, **_counted(survey, [(row, None) for row in survey.changing.get(name, [])])}
            for name, rule in REWRITES.items()
        },
    }


def _rule(survey: Survey, name: str, thresholds: Thresholds) -> dict[str, Any]:
    said = {"meaning": meaning(name, thresholds)}
    if why := RULES[name].missing(thresholds):
        return said | {"missing": why}
    hits = [verdict.hit for verdict in judge_samples(survey, [name], thresholds)]
    return said | _counted(survey, [(hit.number, hit.value) for hit in hits])


def _counted(survey: Survey, found: list[tuple[int, Any]]) -> dict[str, Any]:
    examples = [{"key": survey.index.row(row)[1].key, "value": value} for row, value in found[:EXAMPLES]]
    return {"samples": len(found), "share": round(len(found) / len(survey.index), 6), "examples": examples}


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
    letters = max(1, sum(facts["scripts"].values()))
    scripts = [["SCRIPT", "LETTERS", "SHARE"]]
    scripts += [[name, f"{count:,}", f"{count / letters:.2%}"] for name, count in facts["scripts"].items()]
    if facts["scripts"]:
        tables = [rows, repeats, scripts, _rules("DROPS", facts["rules"]), _rules("REWRITES", facts["rewrites"])]
    else:  # without letters
        others = {name: rule for name, rule in facts["rules"].items() if name not in TEXT_RULES}
        tables = [rows, repeats, _rules("DROPS", others)]
    return "\n\n".join([f"{facts['url']}: {total}", *map(aligned, tables)])


def _rules(what: str, rules: dict[str, Any]) -> list[list[str]]:
    rows = [["RULE", what, "SHARE", "MEANING", "SUCH AS"]]
    for name, rule in rules.items():
        if why := rule.get("missing"):
            rows.append([name, "?", "", why, ""])
        else:
            such = ", ".join(_example(**each) for each in rule["examples"])
            rows.append([name, str(rule["samples"]), f"{rule['share']:.2%}", rule["meaning"], such])
    return rows


def _example(key: str, value: Any) -> str:
    return key if value is None else f"{key} ({value:.60})" if isinstance(value, str) else f"{key} ({value:g})"


def aligned(rows: list[list[str]]) -> str:
    """Lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
