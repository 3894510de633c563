"""The benchmark of the stream times only providers that deliver every sample once, and cleans up behind itself."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_small_run(tmp_path: Path) -> None:
    options = ["--workloads", "small-crop", "--providers", "ours", "webdataset", "--mode", "speed", "--samples", "1"]
    command = [sys.executable, BENCHMARKS / "stream.py", *options, "--workers", "1", "--rounds", "2", "--out", tmp_path]
    (tmp_path / "scratch").mkdir()
    subprocess.run(command, check=True, timeout=250, env=os.environ | {"TMPDIR": str(tmp_path / "scratch")})
    assert not list((tmp_path / "scratch").glob("stream-*"))
    (table,), (figure,) = tmp_path.glob("*.csv"), tmp_path.glob("*.svg")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    measures = {(row["provider"], row["measure"]): row for row in rows}
    assert {name for name, _ in measures} == {"ours", "webdataset", "decode"}
    for name in ("ours", "webdataset"):
        assert all(
            float(measures[name, m]["p50"]) > 0 for m in ("samples/s", "cpu us/sample", "x decode", "x decode, cpu")
        )
    assert float(measures["ours", "x webdataset"]["p50"]) > 0
    assert all(row["device"] and "webdataset 1" in row["versions"] and row["note"].startswith("2048 ") for row in rows)
    assert figure.stat().st_size > 1000


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"a": (1, 10), "b": (1, 20)}, ""),
        ({"a": (1, 10)}, "1 samples missing"),
        ({"a": (2, 10), "b": (1, 20)}, "1 samples repeated"),
        ({"a": (1, 10), "b": (1, 21)}, "1 samples of other content"),
        ({"a": (1, 10), "c": (1, 20)}, "1 samples missing, 1 samples unknown"),
    ],
)
def test_a_wrong_epoch_is_refused(found: dict, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import stream

    assert stream.complaint(found, {"a": 10, "b": 20}) == words
