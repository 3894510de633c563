"""The data stream beside plain webdataset, MosaicML Streaming and litData; its start, its resume, its memory.

    python benchmarks/stream.py --quick                          # about 2 minutes on 2 cores
    python benchmarks/stream.py                                  # about 20 minutes
    python benchmarks/stream.py --mode speed --workloads large --providers ours webdataset --workers 8
    python benchmarks/stream.py --plot                           # redraws the picture of benchmarks/results/stream.csv

speed: all read the same samples on the same cores with the same decoding, in turn, and each must first deliver every
sample exactly once with the same content. "decode" runs the decoding alone, on bytes in memory, in as many processes.
Ratios are taken within a round and are medians over the rounds. "cpu" counts the processor time of all processes, so
its ratios hold on a machine that others use as well. Of the workloads, small-crop does the least that a picture needs:
there a loader's own work weighs most. All ratios are times as good: above 1 the provider beats what it is compared to.
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
import functools
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from measure import RESULTS, device_name, quantiles, write_rows
from stream_limits import memory_rows, start_rows
from stream_providers import PROVIDERS, Batch, available, versions
from stream_samples import FORK, Transform, Workload, make_all, side_by_side, workloads

Row = dict[str, Any]


def cpu_seconds() -> float:
    """Processor time of this process and of those it started and that are alive."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return total


@dataclass(frozen=True)
class Setting:
    """One workload, the folder that has it in every format, and how many processes read it."""

    workload: Workload
    folder: Path
    workers: int

    def epoch(self, provider: str, keyed: bool) -> Iterable[Batch]:
        transform = Transform(self.workload.prepare(self.folder), keyed)
        return PROVIDERS[provider].read(self.folder, transform, self.workload, self.workers)

    @property
    def processes(self) -> int:
        return max(self.workers, 1)


def contents(setting: Setting, provider: str) -> dict[str, tuple[int, int]]:
    """Key -> (how often it came, checksum of what was decoded) over one epoch of a provider."""
    found: dict[str, tuple[int, int]] = {}
    for keys, batch in setting.epoch(provider, keyed=True):
        for place, key in enumerate(keys):
            arrays = {field: values[place].numpy() for field, values in batch.items()}
            found[key] = (found.get(key, (0, 0))[0] + 1, checksum(arrays))
    return found


def checksum(arrays: dict[str, Any]) -> int:
    total = 0
    for field in sorted(arrays):
        total = zlib.crc32(arrays[field].tobytes(), zlib.crc32(f"{field} {arrays[field].dtype}".encode(), total))
    return total


def truth(setting: Setting, samples: list[tuple[str, bytes]]) -> dict[str, int]:
    """Key -> checksum of what is decoded from the bytes in memory."""
    transform = Transform(setting.workload.prepare(setting.folder), keyed=True)

    def decode(share: list[tuple[str, bytes]]) -> dict[str, int]:
        arrays = ((key, transform(key, content)) for key, content in share)
        return {key: checksum({name: value for name, value in found.items() if name != "key"}) for key, found in arrays}

    parts = side_by_side(decode, [samples[part :: setting.processes] for part in range(setting.processes)])
    return {key: value for part in parts for key, value in part.items()}


def complaint(found: dict[str, tuple[int, int]], truth: dict[str, int]) -> str:
    """ "" where an epoch is what it should be, else what is wrong with it."""
    missing, extra = truth.keys() - found.keys(), found.keys() - truth.keys()
    double = [key for key, (count, _) in found.items() if count > 1]
    other = [key for key, (_, content) in found.items() if key in truth and content != truth[key]]
    faults = {"missing": missing, "unknown": extra, "repeated": double, "of other content": other}
    return ", ".join(f"{len(keys)} samples {fault}" for fault, keys in faults.items() if keys)


def pace(setting: Setting, count: int, provider: str) -> tuple[float, float]:
    """(samples a second, processor seconds a sample) of a provider in full flow: workers are up, none is done."""
    idle, batches = 4 * setting.processes, count // setting.workload.batch
    begin = cpu = 0.0
    measured = (0.0, 0.0)
    for number, _ in enumerate(setting.epoch(provider, keyed=False), 1):
        if number == idle:
            begin, cpu = time.perf_counter(), cpu_seconds()
        if number == batches - idle:
            samples = (number - idle) * setting.workload.batch
            measured = samples / (time.perf_counter() - begin), (cpu_seconds() - cpu) / samples
    return measured


def decode_pace(setting: Setting, samples: list[tuple[str, bytes]]) -> tuple[float, float]:
    """The same of the decoding alone: as many processes, each over its share of bytes in memory."""
    transform = Transform(setting.workload.prepare(setting.folder), keyed=False)
    ready = FORK.Barrier(setting.processes)

    def run(share: list[tuple[str, bytes]]) -> tuple[float, float]:
        for key, content in share[:64]:
            transform(key, content)
        ready.wait()
        begin, cpu = time.perf_counter(), time.process_time()
        for key, content in share:
            transform(key, content)
        return len(share) / (time.perf_counter() - begin), (time.process_time() - cpu) / len(share)

    shares = side_by_side(run, [samples[part :: setting.processes] for part in range(setting.processes)])
    return sum(rate for rate, _ in shares), statistics.mean(cpu for _, cpu in shares)


def speed_rows(args: argparse.Namespace, name: str, folder: Path) -> Iterator[Row]:
    """Rates and ratios of every provider on one workload."""
    workload = workloads(args.quick)[name]
    workload = replace(workload, samples=args.samples or workload.samples)
    setting = Setting(workload, folder, args.workers)
    samples = make_all(setting.workload, setting.processes)
    chosen, notes = verified(setting, samples, args.providers)
    rounds = []
    for _ in range(args.rounds):
        times = {name: side_by_side(functools.partial(pace, setting, len(samples)), [name])[0] for name in chosen}
        rounds.append(times | {"decode": decode_pace(setting, samples)})
    size = sum(len(content) for _, content in samples) / len(samples)
    note = f"{len(samples)} samples of {size / 1e3:.1f} kB, batches of {workload.batch}"
    yield from measured(name, rounds, note)
    for provider, why in notes.items():
        yield {"mode": "speed", "case": name, "provider": provider, "measure": "none", "note": why}


def verified(setting: Setting, samples: list[tuple[str, bytes]], wanted: list[str]) -> tuple[list[str], dict[str, str]]:
    """Providers that give each sample once with the right content, and what is wrong with the others."""
    found, missing = available()
    notes = {name: f"not installed: {why}" for name, why in missing.items() if name in wanted}
    expected, chosen = truth(setting, samples), []
    for name in (name for name in wanted if name in found):
        found[name].write(samples, setting.workload.field, setting.folder, max(16, 4 * setting.processes))
        try:
            wrong = complaint(side_by_side(functools.partial(contents, setting), [name])[0], expected)
        except EOFError:
            wrong = "it ended with an error, see above"
        if wrong:
            notes[name] = f"not timed: {wrong}"
        else:
            chosen.append(name)
    return chosen, notes


def measured(case: str, rounds: list[dict[str, tuple[float, float]]], note: str) -> Iterator[Row]:
    """Rows of rate, processor time, and their ratios to webdataset's and to the decoding's."""
    for provider in rounds[0]:
        columns = {
            "samples/s": [r[provider][0] for r in rounds],
            "cpu us/sample": [r[provider][1] * 1e6 for r in rounds],
        }
        others = {"webdataset": ["webdataset"], "decode": ["decode"], "best peer": ["mosaic", "litdata"]}
        for base, members in others.items():
            there = [name for name in members if name in rounds[0] and provider not in (name, "decode")]
            if there:
                columns[f"x {base}"] = [r[provider][0] / max(r[name][0] for name in there) for r in rounds]
                columns[f"x {base}, cpu"] = [min(r[name][1] for name in there) / r[provider][1] for r in rounds]
        for measure, values in columns.items():
            p20, p50, p80 = quantiles(values)
            row = {"mode": "speed", "case": case, "provider": provider, "measure": measure}
            yield row | {"p20": p20, "p50": p50, "p80": p80, "note": note}


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
    parser.add_argument(
        "--workloads", choices=list(workloads(True)), nargs="+", help="default: all; quick: without small-crop"
    )
    parser.add_argument("--providers", choices=list(PROVIDERS), nargs="+", default=list(PROVIDERS))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--rounds", type=int, help="default: 9, quick 3")
    parser.add_argument("--samples", type=int, help="of each workload, at least 16 batches for each worker")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table and the picture")
    parser.add_argument("--plot", action="store_true", help="draw the results there are, measure nothing")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 9)
    args.workloads = args.workloads or [name for name in workloads(True) if not (args.quick and name == "small-crop")]
    return args


def measure_all(args: argparse.Namespace) -> Iterator[Row]:
    for mode in args.mode:
        for case in args.workloads if mode == "speed" else [""]:
            with tempfile.TemporaryDirectory(prefix="stream-") as folder:
                if mode == "speed":
                    yield from speed_rows(args, case, Path(folder))
                else:
                    rows = {"start": start_rows, "memory": memory_rows}[mode]
                    yield from rows(Path(folder), args.workers, args.quick, args.rounds)


def main() -> None:
    args = arguments()
    file = args.out / f"stream{'_quick' if args.quick else ''}.csv"
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
    if "speed" in args.mode:
        plot(file)


if __name__ == "__main__":
    sys.exit(main())
