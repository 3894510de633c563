"""What every benchmark here shares: times taken in turn, peak memory, the machine's name, rows of results."""

import csv
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).with_name("results")
Run = Callable[[], Any]


def device_name(device: torch.device) -> str:
    """The card, or the processor with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()} x{torch.get_num_threads()}"


def seconds(run: Run, device: torch.device, clock: str) -> float:
    """One run. clock: "wall", or "cpu" (time of this process's threads, for a machine that others use as well)."""
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3
    now = time.perf_counter if clock == "wall" else time.process_time
    begin = now()
    run()
    return now() - begin


def in_turn(
    runs: dict[str, Run], device: torch.device, rounds: int, clock: str
) -> dict[str, tuple[float, float, float]]:
    """p20, p50, p80 of each run's seconds. One round runs each once, so that all see the same state of the machine."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, device, clock))
    return {name: quantiles(values) for name, values in times.items()}


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], statistics.median(values), cuts[7]


def peak_bytes(run: Run, device: torch.device) -> int:
    """Memory that a run takes at its peak beyond what is taken before it: the allocator's on a GPU, else pages.

    Resident pages freed to the C library stay resident, so on a CPU only the first large run of a process tells.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    """Bytes from /proc (getrusage would begin with the peak of the parent process)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (int(line.split()[1]) for line in lines if line.startswith(field))
    return kibibytes * 1024


def matmul_rate(dtype: torch.dtype, device: torch.device, size: int) -> float:
    """Floating operations a second of a square matrix product of that size: the roof under which kernels are judged."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    _, middle, _ = in_turn({"matmul": lambda: a @ b}, device, 10, "wall")["matmul"]
    return 2 * size**3 / middle


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """The rows of one run as a CSV, in place of those of an older run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
