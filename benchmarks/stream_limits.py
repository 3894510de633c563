"""How soon the stream starts over a million samples, from any position, and how much memory its workers take."""

import functools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import quantiles
from stream_samples import side_by_side

from bigssl.data.loading.loader import Loader, make_loader
from bigssl.data.order.stream import Stream
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item

Row = dict[str, Any]
BATCH = 256
START_LIMIT, MEMORY_LIMIT = 2.0, 300.0  # seconds, MB


def large_dataset(folder: Path, shards: int, samples: int) -> Path:
    """`shards` shards of `samples` samples: names of one file, so that a million samples are quickly made."""
    items = [Item(f"sample-{n:06d}", "", lambda n=n: {"txt": f"text {n}".encode()}) for n in range(samples)]
    pack(items, folder / "data", name="shard", shard_size=samples)
    manifest = json.loads((folder / "data" / "index.json").read_text())
    (entry,) = manifest["shards"]
    manifest["shards"], manifest["samples"] = [], shards * samples
    for number in range(shards):
        name = f"copy-{number:06d}.tar"
        for file in (folder / "data").glob(f"{entry['name']}*"):
            os.link(file, file.with_name(file.name.replace(entry["name"], name)))
        manifest["shards"].append(entry | {"name": name, "path": name})
    (folder / "data" / "index.json").write_text(json.dumps(manifest))
    return folder / "data"


def length(sample: Sample, generator: np.random.Generator, more: object) -> dict[str, Any]:
    return {"length": len(sample.fields["txt"])}


def loader(data: Path, workers: int, position: int, steps: int) -> Loader:
    stream = Stream(DatasetIndex.load(data), seed=0)
    start = position // BATCH
    return make_loader(
        {"": stream}, {"": BATCH}, length, lambda parts: parts[""], seed=0, rank=0, world=1, accum=1,
        workers=workers, start_step=start, stop_step=start + steps, device_pin=False,
    )  # fmt: skip


def first_batch(data: Path, workers: int, position: int) -> float:
    """Seconds from nothing to the batch at `position`; starting Python and importing torch are not counted."""
    begin = time.perf_counter()
    next(iter(loader(data, workers, position, 100)))
    return time.perf_counter() - begin


def start_rows(folder: Path, workers: int, quick: bool, rounds: int) -> Iterator[Row]:
    data = large_dataset(folder, 1000, 1000)
    begin = functools.partial(first_batch, data, workers)
    runs = [{p: side_by_side(begin, [p])[0] for p in (0, 10**9)} for _ in range(2 * rounds)]
    note = f"1000 shards of 1000 samples; at most {START_LIMIT:g} s"
    columns = {
        "first batch, s": [run[0] for run in runs],
        "from position 10^9, s": [run[10**9] for run in runs],
        "x from position 0": [run[10**9] / run[0] for run in runs],
    }
    yield from rows("start", "1M samples", columns, note)


def footprints(data: Path, workers: int, samples: int) -> list[tuple[float, float, float]]:
    """(share of the epoch, largest USS, largest PSS of a worker, MB) from time to time over `samples` samples."""
    taken, steps = [], samples // BATCH
    for step, _ in enumerate(loader(data, workers, 0, steps), 1):
        if step % max(steps // 50, 1) == 0:
            infos = [child.memory_full_info() for child in psutil.Process().children()]
            largest = (max(info.uss for info in infos) / 1e6, max(info.pss for info in infos) / 1e6)
            taken.append((step / steps, *largest))
    return taken


def memory_rows(folder: Path, workers: int, quick: bool, rounds: int) -> Iterator[Row]:
    shards = 250 if quick else 2000
    data = large_dataset(folder, shards, 1000)
    (taken,) = side_by_side(functools.partial(footprints, data, max(workers, 1)), [shards * 1000])
    note = f"{shards} shards of 1000 samples; at most {MEMORY_LIMIT:g} MB beyond the batch"
    early = [row for row in taken if 0.1 < row[0] <= 0.3]
    late = [row for row in taken if row[0] > 0.8]
    columns = {
        "USS, MB": [row[1] for row in taken],
        "PSS, MB": [row[2] for row in taken],
        "growth of USS, MB": [b[1] - a[1] for a, b in zip(early, late, strict=False)],
    }
    yield from rows("memory", f"{shards // 1000 or 0.25:g}M samples", columns, note)


def rows(mode: str, case: str, columns: dict[str, list[float]], note: str) -> Iterator[Row]:
    """One row for each measure of ours."""
    for measure, values in columns.items():
        p20, p50, p80 = quantiles(values)
        row = {"mode": mode, "case": case, "provider": "ours", "measure": measure}
        yield row | {"p20": p20, "p50": p50, "p80": p80, "note": note}
