"""The benchmark of linear cross-entropy writes its whole table in one run, with a reason for what it did not run."""

import csv
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "linear_cross_entropy.py"
SIZES = "--tokens 64 --widths 16 --classes 100 10000000000 --shares 0.5 --dtypes float32"


def test_a_small_run(tmp_path):
    options = ["--out", tmp_path, "--plot", "--rounds", "2", "--mode", "speed", "memory"]
    command = [sys.executable, BENCHMARK, "--device", "cpu", *SIZES.split(), *options]
    command += ["--providers", "full logits", "ours/torch", "liger-kernel"]
    subprocess.run(command, check=True, timeout=200, capture_output=True)
    (table,), (figure,) = tmp_path.glob("*.csv"), tmp_path.glob("*.svg")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["classes"], row["provider"], row["note"].partition(" GiB, ")[0]) for row in rows] == [
        ("100", "full logits", ""),
        ("100", "ours/torch", ""),
        ("100", "liger-kernel", "not run: needs a GPU"),
        ("100", "full logits", ""),
        ("100", "ours/torch", ""),
        ("10000000000", "all", "not run: wants 2384.2"),
        ("10000000000", "all", "not run: wants 2384.2"),
    ]
    assert all(float(row["p50_ms"]) > 0 for row in rows[:2]) and all(row["extra_mib"] for row in rows[3:5])
    assert figure.stat().st_size > 1000
