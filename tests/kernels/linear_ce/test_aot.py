"""The ahead-of-time reports of the linear cross-entropy kernels are current and clean; a sample is compiled afresh."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
REPORTS = sorted((BENCHMARKS / "results").glob("linear_ce_aot_*.csv"))


@pytest.fixture(scope="module")
def aot():
    spec = importlib.util.spec_from_file_location("aot_linear_ce", BENCHMARKS / "aot_linear_ce.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(loaded)
    sys.path[:] = path
    return loaded


def test_both_compilers_have_a_report():
    assert {"linear_ce_aot_triton-3.6.0.csv", "linear_ce_aot_triton-3.7.1.csv"} <= {report.name for report in REPORTS}


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.name)
def test_the_report_is_complete_current_and_clean(report, aot):
    with report.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["source"] for row in rows} == {aot.source_hash()}, "run benchmarks/aot_linear_ce.py again"
    assert [{name: row[name] for name in aot.FIELDS} for row in rows] == [
        {name: str(value) for name, value in case.items()} for case in aot.cases()
    ]
    products = [row for row in rows if aot.KERNELS[row["kernel"]][1] is not None]
    assert all(row["ok"] == "1" and row["spills"] == "0" for row in rows)
    assert all(int(row["matrix"]) > 0 for row in products) and len(products) == 68


def test_a_sample_compiles():
    command = [sys.executable, BENCHMARKS / "aot_linear_ce.py", "--jobs", "1", "--only", "sm_90,gradient,bf16"]
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "1 of 1 pass" in done.stderr, done.stdout + done.stderr


def test_addresses_are_64_bit(aot):
    """Tokens x row size and tokens x classes pass 2^31: no product of indices may be made in 32 bits."""
    for case in aot.cases():
        if case["architecture"] == "sm_90" and case["dtype"] == "bf16":
            code = aot.compile_case(case).asm["ttir"]
            products = [line for line in code.splitlines() if "arith.muli" in line and "tensor<" in line]
            assert all("xi64>" in line for line in products), case
