"""Runs measurements in processes of their own, and fits the numbers of the law to them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bigssl.config.recipe import Recipe
from bigssl.engine.launcher import free_port
from bigssl.report.environment import installed
from clusters.law import Cluster
from clusters.rank import Asked

ROOT = Path(__file__).parents[2]
SIZES = [4096, 65536, 1 << 20, 4 << 20, 16 << 20]
DEMO = {"image": "bigssl/demo/emoji/train", "text": "bigssl/demo/text/train", "audio": "bigssl/demo/speech/train",
        "series": "bigssl/demo/series/basic_motions/train"}  # fmt: skip
MEETING = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
Run = dict[str, Any]


def demo_data(recipe: Recipe, modalities: dict[str, str]) -> list[str]:
    """Overrides by which a recipe reads the demo's data. modalities: of each source."""
    return [f"data.sources.{name}.url={DEMO[modalities[name]]}" for name in recipe.data.sources]


def launch(asked: Asked, world: int, threads: int, before: Sequence[Sequence[str]] = (), address: str = "127.0.0.1",
           env: dict[str, str] | None = None) -> Run:  # fmt: skip
    """Measure `asked` on `world` local ranks of `threads` each. before: words before the command of each rank (those
    of a network namespace). address: of rank 0.

    Raises:
        RuntimeError: a rank failed; with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        place, out = Path(folder) / "asked.json", Path(folder) / "found.json"
        port, processes = free_port(), []
        place.write_text(json.dumps(asdict(asked) | {"out": str(out), "began": time.time()}))
        alone = {key: value for key, value in os.environ.items() if key not in MEETING}
        paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
        for rank in range(world):
            own = alone | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false",
                           "TORCH_NUM_THREADS": str(threads)} | (env or {})  # fmt: skip
            if world > 1:
                own |= dict(zip(MEETING, (str(rank), str(rank), str(world), address, port), strict=True))
            script = str(Path(__file__).with_name("rank.py"))
            words = [*(before[rank] if before else ()), sys.executable, script, str(place)]
            log = open(Path(folder) / f"{rank}.log", "w+b")  # noqa: SIM115
            processes.append((subprocess.Popen(words, cwd=ROOT, env=own, stdout=log, stderr=log), log))
        codes = [process.wait() for process, _ in processes]
        if any(codes):
            ends = []
            for code, (_, log) in zip(codes, processes, strict=True):
                log.seek(0)
                ends += [log.read().decode(errors="replace")[-1500:]] if code else []
            raise RuntimeError(f"measuring {asked.recipe} on {world} ranks: exit codes {codes}\n" + ends[0])
        for _, log in processes:
            log.close()
        found: Run = json.loads(out.read_text())
        return found


def described(runs: list[Run]) -> Run:
    """Measurements with what they were made on."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    versions = installed()
    return {"device": device, "cuda": cuda, "cores": len(os.sched_getaffinity(0)), "packages": versions["packages"],
            "runs": runs}  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """A recipe as it was measured on one rank: seconds of a pass = fixed + each × samples. forward: its share of them.
    update: seconds. spread: deviation of the log of step times. readers: samples/s of a worker. start: seconds to the
    first step. save: bytes/s of a checkpoint. What is said of data is 0 where it was measured on others."""

    name: str
    fixed: float
    each: float
    forward: float
    update: float
    spread: float
    readers: float
    sample_bytes: float
    samples_per_open: float
    start: float
    save: float
    micros: tuple[int, ...]

    def passes(self, micro: float) -> float:
        return self.fixed + self.each * micro


def nonnegative(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Two numbers x ≥ 0 with least Σ (rows · x / value − 1)²: relative errors, so that small values count too."""
    matrix = np.array([np.array(row, float) / value for row, value in zip(rows, values, strict=True)])
    best = np.linalg.lstsq(matrix, np.ones(len(matrix)), rcond=None)[0]
    if (best >= 0).all():
        return [float(x) for x in best]
    single = []
    for n in range(2):
        column = matrix[:, n]
        x = [0.0, 0.0]
        x[n] = float(column.sum() / max(float(column @ column), 1e-300))
        single.append((float(((matrix @ x - 1) ** 2).sum()), x))
    return min(single)[1]


def fit_recipe(run: Run, pick: Callable[[list[float]], float] = statistics.median) -> Fitted:
    """From a run of one rank. pick: the time that stands for some of the same: `min` where others use the machine."""
    found = run["found"]
    middle = {int(micro): {name: pick(times) for name, times in phases.items()}
              for micro, phases in found["steps"].items()}  # fmt: skip
    passes = {micro: times["total"] - times["update"] for micro, times in middle.items()}
    fixed, each = nonnegative([[1.0, micro] for micro in passes], list(passes.values()))
    largest = middle[max(middle)]
    logs = []
    for phases in found["steps"].values():
        center = statistics.median(phases["total"])
        logs += [float(np.log(t / center)) for t in phases["total"]]
    low, high = np.quantile(logs, [0.16, 0.84])
    facts = list(found["sources"].values())
    saved = found["checkpoint"]
    return Fitted(
        name=found["name"], fixed=fixed, each=each,
        forward=largest["forward"] / (largest["forward"] + largest["backward"]),
        update=statistics.fmean(times["update"] for times in middle.values()), spread=float(high - low) / 2,
        readers=found["samples/s of a worker"], sample_bytes=sum(f["share"] * f["sample bytes"] for f in facts),
        samples_per_open=statistics.fmean(f["samples per shard"] for f in facts), start=found["start"],
        save=saved["bytes"] / saved["seconds"] if saved else 0.0, micros=tuple(sorted(middle)),
    )  # fmt: skip


def fit_link(runs: Sequence[Run]) -> tuple[float, float]:
    """(latency of a hop in s, bytes/s) from the collectives of runs of more than one rank, as rings."""
    rows, values = [], []
    for run in runs:
        world = run["found"]["world"]
        for kind, points in run["found"]["collectives"].items():
            rounds = 2 if kind == "all_reduce" else 1
            for size, seconds in points:
                rows.append([rounds * (world - 1), rounds * (world - 1) / world * size])
                values.append(seconds)
    latency, inverse = nonnegative(rows, values)
    return latency, 1 / max(inverse, 1e-15)


def this_machine(measured: Run, link: tuple[float, float] | None, stream: float) -> Cluster:
    """The machine that was measured, as a cluster of one node whose ranks compute on its cores."""
    latency, speed = link or (0.0, 1e15)
    cores = 0 if measured["cuda"] else measured["cores"]
    return Cluster(
        name="as measured", per_node=1 << 20, peak=0.0, memory=0.0, memory_speed=0.0, inner=speed,
        inner_latency=latency, outer=speed,
        outer_latency=latency, reading=1e15, writing=1e15, store_read=1e15, store_write=1e15,
        opens=1e15, stream=stream or 1e15, launch=0.0, cores=cores, sources=f"fitted on {measured['device']}",
    )  # fmt: skip
