"""The numbers of `stats` are those of numpy over the samples, and all of them JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bigssl.data.tools.rules import Thresholds
from bigssl.data.tools.stats import aligned, distribution, statistics, table
from bigssl.data.tools.texts.rules import TEXT_RULES

from .test_survey import NOISE, png, surveyed


def test_distributions_are_percentiles() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    facts = distribution(values)
    assert list(facts) == ["min", "p1", "p5", "p25", "p50", "p75", "p95", "p99", "max", "mean", "sum"]
    assert (facts["min"], facts["max"], facts["p50"]) == (values.min(), values.max(), np.median(values))
    assert facts["p5"] == np.quantile(values, 0.05)
    assert distribution(np.array([3.0]))["p99"] == 3


def test_statistics_of_a_dataset(tmp_path: Path) -> None:
    samples = {f"k{n}": {"txt": b"x" * (n + 1), "png": png(NOISE)} for n in range(4)} | {"z": {"txt": b"xx"}}
    facts = json.loads(json.dumps(statistics(surveyed(tmp_path / "x", samples), Thresholds())))
    assert (facts["samples"], facts["shards"], facts["samples_per_shard"]["min"]) == (5, 3, 1)
    assert facts["bytes"] == sum(path.stat().st_size for path in (tmp_path / "x").glob("*.tar"))
    text, picture = facts["fields"]["txt"], facts["fields"]["png"]
    assert (text["samples"], text["duplicates"], text["measures"]["characters"]["sum"]) == (5, 1, 12)
    assert (picture["samples"], picture["duplicates"], picture["measures"]["width"]["p50"]) == (4, 3, 30)
    assert {name: rule["samples"] for name, rule in facts["rules"].items() if name not in TEXT_RULES} == {
        "damaged": 0, "blank": 0, "empty-text": 3, "non-finite": 0, "constant-series": 0,
        "still-channels": 0, "silent": 0, "duplicates": 0,
    }  # fmt: skip
    assert facts["rules"]["empty-text"]["examples"] == [{"key": f"k{n}", "value": n + 1.0} for n in (0, 1)] + [
        {"key": "z", "value": 2.0}]  # fmt: skip
    assert facts["rules"]["empty-text"]["share"] == 0.6
    shown = table(facts)
    assert "5 samples in 3 shards" in shown
    assert [line.split()[:3] for line in shown.splitlines() if line.startswith("png")][:2] == [
        ["png", "bytes", "4"],
        ["png", "width", "4"],
    ]


def test_a_dataset_that_cannot_be_read_has_statistics_too(tmp_path: Path) -> None:
    facts = surveyed(tmp_path / "x", {"a": {"txt": b"abc"}})
    facts.columns.clear()
    facts.digests.clear()
    facts.damage[0] = "broken"
    assert statistics(facts, Thresholds())["rules"]["damaged"]["samples"] == 1


def test_columns_are_aligned() -> None:
    assert aligned([["A", "B"], ["long", "x"]]) == "A     B\nlong  x"
