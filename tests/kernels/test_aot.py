"""The ahead-of-time reports belong to the kernels as they are and hold no failure; a sample is compiled afresh."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
REPORTS = sorted((BENCHMARKS / "results").glob("aot_*.csv"))

spec = importlib.util.spec_from_file_location("aot", BENCHMARKS / "aot.py")
assert spec is not None and spec.loader is not None
aot = importlib.util.module_from_spec(spec)


@pytest.fixture(scope="module", autouse=True)
def _load():
    spec.loader.exec_module(aot)


def test_both_compilers_have_a_report():
    assert {"aot_triton-3.6.0.csv", "aot_triton-3.7.1.csv"} <= {report.name for report in REPORTS}


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.name)
def test_the_report_is_complete_current_and_clean(report):
    with report.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["source"] for row in rows} == {aot.source_hash()}, "run benchmarks/aot.py again"
    assert [{name: row[name] for name in aot.FIELDS} for row in rows] == [
        {name: str(value) for name, value in case.items()} for case in aot.cases()
    ]
    assert all(row["ok"] == "1" and row["spills"] == "0" and int(row["matrix"]) > 0 for row in rows)


@pytest.mark.parametrize("pattern", ["sm_90,gradient,softmax,bf16,128", "gfx942,reduce,sigmoid,fp32,64"])
def test_a_sample_compiles(pattern):
    command = [sys.executable, BENCHMARKS / "aot.py", "--jobs", "1", "--only", pattern]
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "1 of 1 pass" in done.stderr, done.stdout + done.stderr


def test_addresses_are_64_bit():
    """Rows x row size passes 2^31: no product of indices may be made in 32 bits."""
    for case in aot.cases():
        if case["architecture"] == "sm_90" and case["bucket"] == 512 and case["dtype"] == "bf16":
            code = aot.compile_case(case).asm["ttir"]
            products = [line for line in code.splitlines() if "arith.muli" in line and "tensor<" in line]
            assert products and all("xi64>" in line for line in products), case
