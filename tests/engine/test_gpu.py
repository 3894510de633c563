"""On a CUDA device: the driver as its user runs it, at every ZeRO stage; killed and started again; against a CPU."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
ROOT = Path(__file__).parents[2]
STEPS = 12
OVERRIDES = [
    f"steps={STEPS}", "optim.warmup=2", "batch.size=32", "data.sources.text.batch=8", "data.sources.captions.batch=32",
    "checkpoint.every=4", "log_every=1", "probe.every=6", "probe.knn.bank=bigssl/demo/emoji/val",
    "probe.knn.bank_limit=64", "probe.knn.query_limit=32",
    *(f"evaluate.{name}.bank=bigssl/demo/emoji/val" for name in ("images", "designs", "captions")),
    *(f"evaluate.{name}.captions=bigssl/demo/emoji/val" for name in ("names", "class_mean")),
]  # fmt: skip
HOST, KILLED = "{device: cpu}", "fp32-1"
RUNS = {
    "fp32-0": ["precision=fp32", "zero.stage=0"],
    "fp32-1": ["precision=fp32", "zero.stage=1"],
    "fp32-3": ["precision=fp32", "zero.stage=3"],
    "bf16-0": ["precision=bf16", "zero.stage=0"],
    "bf16-1": ["precision=bf16", "zero.stage=1"],
    "bf16-2-offload": ["precision=bf16", "zero.stage=2", f"zero.options.offload_optimizer={HOST}"],
    "bf16-3-offload": ["precision=bf16", "zero.stage=3", f"zero.options.offload_param={HOST}",
                       f"zero.options.offload_optimizer={HOST}"],
    "muon": ["precision=bf16", "zero.stage=3", "optim.name=muon", "optim.lr=0.002"],
    "cpu": ["precision=fp32", "zero.stage=1"],
}  # fmt: skip
ALIKE = {"fp32": 5e-2, "bf16": 0.15}  # of a loss at any step: a few steps at this rate part runs that round apart


def started(folder: Path, name: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    if name == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
    if name.startswith("fp32"):
        environment["NVIDIA_TF32_OVERRIDE"] = "0"  # to which cuDNN would round
    command = [sys.executable, "-m", "bigssl", "train", "launch/recipes/demo.yaml", f"out={folder / name}", *OVERRIDES]
    return subprocess.Popen(
        [*command, *RUNS[name]], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def killed_and_started_again(folder: Path, name: str) -> tuple[Path, int, str]:
    process, out = started(folder, name), folder / name
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "latest").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(3)  # a rank that lost its launcher takes a moment to notice
    again = started(folder, name)
    said = ended(again)
    return out, again.returncode, said


def ended(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """What it said; it is ended where it does not end."""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0] + "\nstill running"
    return said


def curve(folder: Path) -> list[dict[str, float]]:
    """Metrics without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("speed/")} for row in rows]


def gap(got: list[dict[str, float]], want: list[dict[str, float]]) -> float:
    """Largest relative difference of a loss at a step."""
    assert [row["step"] for row in got] == [row["step"] for row in want]
    rows = zip(got, want, strict=True)
    gaps = [max(abs(a[key] - b[key]) / abs(b[key]) for key in b if key.startswith("loss")) for a, b in rows]
    print("by step:", *(f"{each:.0e}" for each in gaps))
    return math.inf if any(map(math.isnan, gaps)) else max(gaps)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int, str]]:
    """Folder, exit code and words of each of RUNS and of one that was "killed", all run side by side."""
    folder = tmp_path_factory.mktemp("runs")
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(killed_and_started_again, folder / "killed", KILLED)
        processes = {name: started(folder, name) for name in RUNS}
        said = {name: ended(process) for name, process in processes.items()}
    found = {name: (folder / name, processes[name].returncode, said[name]) for name in RUNS}
    return found | {"killed": killed.result()}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_leaves_what_it_promises(runs: Any, name: str) -> None:
    out, code, said = runs[name]
    assert code == 0, said[-3000:]
    for file in ("checkpoints/latest", "export/README.md", "scorecard.json", "report.html"):
        assert (out / file).exists(), file
    rows = curve(out)
    assert len(rows) == STEPS and {"loss/views", "blind/captions", "probe/knn"} <= set(rows[-1])
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("cpu", "muon")])
def test_it_learns_what_a_cpu_learns(runs: Any, name: str) -> None:
    found = gap(curve(runs[name][0]), curve(runs["cpu"][0]))
    print(f"{name}: losses within {found:.1e} of a CPU's")
    assert found <= ALIKE[name[:4]]


def test_an_export_is_worth_the_same_on_either_device(runs: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bigssl", "evaluate", str(runs[KILLED][0])]
    processes = {
        device: subprocess.Popen([*command, "--device", device, "--out", str(tmp_path / device)], cwd=ROOT, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        for device in ("cpu", "cuda")
    }  # fmt: skip
    cards = {}
    for device, process in processes.items():
        assert "report:" in (said := ended(process)), said
        cards[device] = numbers(json.loads((tmp_path / device / "scorecard.json").read_text())["tasks"])
    assert cards["cpu"].keys() == cards["cuda"].keys() and len(cards["cpu"]) > 20
    for key, value in cards["cpu"].items():
        assert cards["cuda"][key] == pytest.approx(value, rel=2e-2, abs=2e-2), key


def numbers(value: Any, path: str = "") -> dict[str, float]:
    """Every number of nested lists and mappings, by its path."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return {}
    if isinstance(value, (int, float)):
        return {path: float(value)}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: number for name, each in items for key, number in numbers(each, f"{path}/{name}").items()}


def test_killed_and_started_again_it_ends_the_same(runs: Any) -> None:
    """Within what two runs differ by on a GPU, where sums have no fixed order; to the bit where they have one:
    tests/objectives/test_gpu.py."""
    out, code, said = runs["killed"]
    assert code == 0 and "resumed after step" in said, said[-3000:]
    found = gap(curve(out), curve(runs[KILLED][0]))
    print(f"losses within {found:.1e} of those of a run that was not killed")
    assert found <= ALIKE["fp32"]
