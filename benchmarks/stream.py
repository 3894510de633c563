"""The data stream beside plain webdataset, MosaicML Streaming and litData; its start, its resume, its memory.

    python benchmarks/stream.py --quick                          # about 2 minutes on 2 cores
    python benchmarks/stream.py                                  # about 20 minutes
    python benchmarks/stream.py --mode speed --workloads large --providers ours webdataset --workers 8
    python benchmarks/stream.py --plot                           # redraws the picture of benchmarks/results/stream.csv

speed: all read the same samples on the same cores with the same decoding, in turn, and each must first deliver every
sample exactly once with the same content. "decode" runs the decoding alone, on bytes in memory, in as many processes.
Ratios are taken within a round and are medians over the rounds. "cpu" counts the processor time of all processes, so
its ratios hold on a machine that others use as well.
start: from nothing to the first batch over a million samples, from the beginning and from position 10^9.
memory: of a worker over an epoch of an index of a million samples, by pages of its own (USS) and with its share of
common ones (PSS).

Everything is written to a temporary folder and removed. Peers that cannot be imported are named in the table:
extra `bench`; without a build of torchvision for the machine at hand, `pip install --no-deps mosaicml-streaming` and
what it needs (see `import_streaming`).
"""

import argparse
import contextlib
import csv
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from measure import RESULTS, device_name, quantiles, write_rows
from stream_limits import memory_rows, start_rows
from stream_providers import PROVIDERS, Provider, available, versions
from stream_samples import Transform, Workload, make_all, workloads

FORK = multiprocessing.get_context("fork")
Row = dict[str, Any]


def apart(work: Callable[..., Any], *args: Any) -> Any:
    """work(*args) in a forked process of its own, which leaves nothing behind that the next one could feel."""
    here, there = FORK.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(1)
        there.send(work(*args))

    process = FORK.Process(target=run)
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError as error:
        raise RuntimeError(f"{work.__name__}{args[:1]} failed, see above") from error
    finally:
        process.join()


def cpu_seconds() -> float:
    """Processor time of this process and of those it started and that are alive."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def contents(name: str, folder: Path, workload: Workload, workers: int) -> dict[str, tuple[int, int]]:
    """Key -> (how often it came, checksum of what was decoded) over one epoch of a provider."""
    found: dict[str, tuple[int, int]] = {}
    transform = Transform(workload.prepare(folder), keyed=True)
    for keys, batch in PROVIDERS[name].read(folder, transform, workload, workers):
        for place, key in enumerate(keys):
            arrays = {field: values[place].numpy() for field, values in batch.items()}
            found[key] = (found.get(key, (0, 0))[0] + 1, checksum(arrays))
    return found


def checksum(arrays: dict[str, Any]) -> int:
    total = 0
    for field in sorted(arrays):
        total = zlib.crc32(arrays[field].tobytes(), zlib.crc32(f"{field} {arrays[field].dtype}".encode(), total))
    return total


def complaint(found: dict[str, tuple[int, int]], truth: dict[str, int]) -> str:
    """ "" where an epoch is what it should be, else what is wrong with it."""
    missing, extra = truth.keys() - found.keys(), found.keys() - truth.keys()
    double = [key for key, (count, _) in found.items() if count > 1]
    other = [key for key, (_, content) in found.items() if key in truth and content != truth[key]]
    faults = {"missing": missing, "unknown": extra, "repeated": double, "of other content": other}
    return ", ".join(f"{len(keys)} samples {fault}" for fault, keys in faults.items() if keys)


def pace(name: str, folder: Path, workload: Workload, workers: int) -> tuple[float, float]:
    """(samples a second, processor seconds a sample) of a provider in full flow: workers are up, none is done."""
    transform = Transform(workload.prepare(folder), keyed=False)
    idle, batches = 4 * max(workers, 1), workload.samples // workload.batch
    begin = cpu = 0.0
    for number, _ in enumerate(PROVIDERS[name].read(folder, transform, workload, workers), 1):
        if number == idle:
            begin, cpu = time.perf_counter(), cpu_seconds()
        if number == batches - idle:
            samples = (number - idle) * workload.batch
            return samples / (time.perf_counter() - begin), (cpu_seconds() - cpu) / samples
    raise RuntimeError(f"{name} gave fewer than {batches - idle} batches")


def decode_pace(samples: list[bytes], folder: Path, workload: Workload, workers: int) -> tuple[float, float]:
    """The same of the decoding alone: `workers` processes, each over its share of bytes in memory."""
    prepare = workload.prepare(folder)
    results, ready = FORK.SimpleQueue(), FORK.Barrier(max(workers, 1))

    def run(share: list[bytes]) -> None:
        transform = Transform(prepare, keyed=False)
        for content in share[:64]:
            transform("", content)
        ready.wait()
        begin, cpu = time.perf_counter(), time.process_time()
        for content in share:
            transform("", content)
        results.put((len(share) / (time.perf_counter() - begin), (time.process_time() - cpu) / len(share)))

    processes = [FORK.Process(target=run, args=(samples[part :: max(workers, 1)],)) for part in range(max(workers, 1))]
    for process in processes:
        process.start()
    shares = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rate for rate, _ in shares), statistics.mean(cpu for _, cpu in shares)


def speed_rows(args: argparse.Namespace, name: str, folder: Path) -> Iterator[Row]:
    """Rates and ratios of every provider on one workload."""
    workload = workloads(args.quick)[name]
    samples = make_all(workload, max(args.workers, 1))
    chosen, notes = verified(args, workload, samples, folder)
    runs: dict[str, Callable[[], tuple[float, float]]] = {
        provider: lambda provider=provider: apart(pace, provider, folder, workload, args.workers) for provider in chosen
    }
    contents_only = [content for _, content in samples]
    runs["decode"] = lambda: apart(decode_pace, contents_only, folder, workload, args.workers)
    rounds = [{provider: run() for provider, run in runs.items()} for _ in range(args.rounds)]
    size = sum(map(len, contents_only)) / len(samples)
    yield from measured(name, rounds, f"{len(samples)} samples of {size / 1e3:.1f} kB, batches of {workload.batch}")
    for provider, why in notes.items():
        yield {"mode": "speed", "case": name, "provider": provider, "measure": "none", "note": why}


def verified(
    args: argparse.Namespace, workload: Workload, samples: list[tuple[str, bytes]], folder: Path
) -> tuple[dict[str, Provider], dict[str, str]]:
    """Providers that give each sample once with the right content, and what is wrong with the others."""
    found, missing = available()
    notes = {name: f"not installed: {why}" for name, why in missing.items() if name in args.providers}
    transform = Transform(workload.prepare(folder), keyed=True)
    truth = {key: checksum({k: v for k, v in transform(key, data).items() if k != "key"}) for key, data in samples}
    chosen = {}
    for name in (name for name in args.providers if name in found):
        found[name].write(samples, workload.field, folder)
        wrong = complaint(apart(contents, name, folder, workload, args.workers), truth)
        if wrong:
            notes[name] = f"not timed: {wrong}"
        else:
            chosen[name] = found[name]
    return chosen, notes


def measured(case: str, rounds: list[dict[str, tuple[float, float]]], note: str) -> Iterator[Row]:
    """Rows of rate, processor time, and their ratios to webdataset's and to the decoding's."""
    for provider in rounds[0]:
        columns = {
            "samples/s": [r[provider][0] for r in rounds],
            "cpu us/sample": [r[provider][1] * 1e6 for r in rounds],
        }
        for base in ("webdataset", "decode"):
            if base in rounds[0]:
                columns[f"x {base}"] = [r[provider][0] / r[base][0] for r in rounds]
                columns[f"x {base}, cpu"] = [r[base][1] / r[provider][1] for r in rounds]
        for measure, values in columns.items():
            p20, p50, p80 = quantiles(values)
            yield {
                "mode": "speed", "case": case, "provider": provider, "measure": measure,
                "p20": p20, "p50": p50, "p80": p80, "note": note,
            }  # fmt: skip


def show(row: Row) -> None:
    cells = [f"{row['mode']:7}{row.get('case', ''):12}{row['provider']:12}{row['measure']:22}"]
    if "p50" in row:
        cells.append(f"{row['p50']:10.4g}   ({row['p20']:.4g} to {row['p80']:.4g})")
    print(*cells, row["note"] if "p50" not in row or row["mode"] != "speed" else "", flush=True)


def plot(file: Path) -> None:
    """Bars of every provider's rate as a share of decoding alone, from the CSV."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with file.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["measure"] == "x decode" and row["provider"] != "decode"]
    cases, names = (list(dict.fromkeys(row[column] for row in rows)) for column in ("case", "provider"))
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for place, name in enumerate(names):
        mine = {row["case"]: row for row in rows if row["provider"] == name}
        middles = [float(mine[case]["p50"]) if case in mine else 0.0 for case in cases]
        spread = [
            [abs(float(mine[case]["p50"]) - float(mine[case][p])) if case in mine else 0.0 for case in cases]
            for p in ("p20", "p80")
        ]
        axes.bar([x + place / (len(names) + 1) for x in range(len(cases))], middles, 1 / (len(names) + 1),
                 yerr=spread, label=name)  # fmt: skip
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xticks([x + 0.3 for x in range(len(cases))], cases)
    axes.set(ylabel="samples/s, share of decoding alone")
    axes.legend(fontsize=7, ncols=len(names))
    figure.savefig(file.with_suffix(".svg"), bbox_inches="tight")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples and rounds")
    parser.add_argument("--mode", choices=["speed", "start", "memory"], nargs="+", default=["speed", "start", "memory"])
    parser.add_argument("--workloads", choices=list(workloads(True)), nargs="+", default=list(workloads(True)))
    parser.add_argument("--providers", choices=list(PROVIDERS), nargs="+", default=list(PROVIDERS))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--rounds", type=int, help="default: 9, quick 3")
    parser.add_argument("--plot", action="store_true", help="draw the results there are, measure nothing")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 9)
    return args


def measure_all(args: argparse.Namespace) -> Iterator[Row]:
    for mode in args.mode:
        for case in args.workloads if mode == "speed" else [""]:
            with tempfile.TemporaryDirectory(prefix="stream-") as folder:
                if mode == "speed":
                    yield from speed_rows(args, case, Path(folder))
                else:
                    rows = {"start": start_rows, "memory": memory_rows}[mode]
                    yield from rows(Path(folder), args.workers, args.quick, args.rounds, apart)


def main() -> None:
    args = arguments()
    file = RESULTS / f"stream{'_quick' if args.quick else ''}.csv"
    if args.plot:
        plot(file)
        return
    torch.set_num_threads(1)
    context = {
        "workers": args.workers,
        "rounds": args.rounds,
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
    }
    blank = dict.fromkeys(("mode", "case", "provider", "measure", "p20", "p50", "p80", "note"), "")
    rows = []
    for row in measure_all(args):
        show(row)
        rows.append(blank | row | context)
    write_rows(file, rows)
    plot(file)


if __name__ == "__main__":
    sys.exit(main())
