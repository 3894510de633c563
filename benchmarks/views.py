"""SimCLR's two views of a JPEG on one core: ours, ours of before (Pillow), and peers that install here.

    python benchmarks/views.py            # about 2 minutes on 2 cores
    PYTHONPATH=PEERS python benchmarks/views.py    # after: pip install --no-deps --target PEERS albumentations==2.0.8 \
                                                   #        albucore==0.0.24 simsimd stringzilla kornia kornia_rs \
                                                   #        torchvision==0.28

64: 64-pixel views of the demo's own 64-pixel JPEGs. 224: 224-pixel views of 500 × 375 mosaics of them, quality 90.
First each must give what it should: two views of the right size that differ; ours also what the accelerator's path and
Pillow make of the same numbers, within bounds. Then all run in turn, one thread each; processor time, so that ratios
hold on a machine that others use as well. "x pillow" and "x best peer": above 1 the provider is faster.

loader: samples a second that one loader worker delivers, beside one process that decodes and makes the same views of
bytes in memory ("x decode"), as benchmarks/stream.py measures it.
"""

import argparse
import functools
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import peers  # noqa: F401 - first: see there
import torch
from measure import RESULTS, device_name, quantiles, write_rows
from stream import Setting, decode_pace, measured, pace, verified
from stream_samples import Workload, make_all, side_by_side, two_views
from views_providers import (
    TOGETHER,
    albumentations,
    encoded,
    kornia,
    missing,
    ours,
    pillow,
    pillow_view,
    simclr,
    torchvision,
)

from bigssl.data.kinds import decode
from bigssl.data.kinds.augment import render
from bigssl.data.kinds.augment_device import on_canvas, placed, render_batch
from bigssl.data.loading.collate import collate
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex

Row = dict[str, Any]
Pass = Callable[[], None]
DEMO = Path(__file__).parents[1] / "bigssl" / "demo" / "emoji" / "train"
SIZES = {"64": 64, "224": 224}
PEERS = ("albumentations", "kornia", "torchvision")


@functools.cache
def emoji() -> tuple[bytes, ...]:
    return tuple(sample.fields["jpg"] for sample in read_in_order(DatasetIndex.load(DEMO), 1024))


@functools.cache
def mosaic(number: int) -> bytes:
    """500 × 375 pixels of 48 pictures of the demo."""
    rng = np.random.default_rng(number)
    rows = [np.hstack([decode.picture_array(emoji()[int(n)]) for n in rng.integers(1024, size=8)]) for _ in range(6)]
    return encoded(np.vstack(rows)[:375, :500])


def pictures(case: str, count: int) -> list[bytes]:
    return list(emoji()[:count]) if case == "64" else [mosaic(number) for number in range(count)]


def check_ours(case: str) -> str:
    """Means of the difference in bytes to the accelerator's path and to Pillow, from the same numbers."""
    size = SIZES[case]
    arrays = [decode.picture_array(data) for data in pictures(case, 32)]
    augment, rng = simclr(size), np.random.default_rng(0)
    views = [augment.draw(array.shape[1], array.shape[0], rng) for array in arrays]
    mine = np.stack([render(array, view, size) for array, view in zip(arrays, views, strict=True)]).astype(float)
    canvases, scales = zip(*(on_canvas(array, 512) for array in arrays), strict=True)
    numbers = [placed(v, a.shape[1], a.shape[0], s) for v, a, s in zip(views, arrays, scales, strict=True)]
    batched = render_batch(collate(canvases), collate(numbers), size, augment.largest_sigma).numpy()
    images = [decode.image(data) for data in pictures(case, 32)]
    before = np.stack([pillow_view(image, view, size) for image, view in zip(images, views, strict=True)])
    found = np.abs(mine - batched).mean(), np.abs(mine - before).mean()
    said = f"{found[0]:.2f} bytes from the accelerator's, {found[1]:.2f} from Pillow's"
    assert found[0] < 1 and found[1] < 3, said
    return said


def passes(case: str, names: list[str], data: list[bytes]) -> dict[str, Pass]:
    """One pass over `data` by provider, each verified on a few of them."""
    rng, size, found = np.random.default_rng(0), SIZES[case], dict[str, Pass]()
    single = {"ours": ours, "pillow": pillow, "albumentations": albumentations, "torchvision": torchvision}
    for name in names:
        if name == "kornia":
            batched = kornia(size)
            sample = tuple(view.numpy() for view in batched(data[:TOGETHER]))
            assert sample[0].shape == (TOGETHER, 3, size, size)
            found[name] = lambda f=batched: [f(data[n : n + TOGETHER]) for n in range(0, len(data), TOGETHER)]  # type: ignore[misc]
        else:
            alone = single[name](size)
            pairs = [alone(each, rng) for each in data[:TOGETHER]]
            sample = tuple(np.stack(views) for views in zip(*pairs, strict=True))
            assert sample[0].shape == (TOGETHER, 3, size, size) and sample[0].dtype == np.uint8
            found[name] = lambda f=alone: [f(each, rng) for each in data]  # type: ignore[misc]
        assert np.abs(sample[0].astype(float) - sample[1]).mean() > (0.02 if name == "kornia" else 5), name
    return found


def view_rows(case: str, rounds: int) -> Iterator[Row]:
    wanted = ["ours", "pillow", *(name for name in PEERS if not missing(name))]
    data = pictures(case, 256 if case == "64" else 64)
    agreed = check_ours(case)
    runs, times = passes(case, wanted, data), []
    for _ in range(rounds):
        taken = {}
        for name, run in runs.items():
            begin = time.process_time()
            run()
            taken[name] = (time.process_time() - begin) / len(data)
        times.append(taken)
    note = f"{len(data)} JPEGs of {sum(map(len, data)) / len(data) / 1e3:.1f} kB; {agreed}"
    for name in wanted:
        columns = {"samples/s": [1 / taken[name] for taken in times]}
        columns["x pillow"] = [taken["pillow"] / taken[name] for taken in times]
        if others := [peer for peer in PEERS if peer in wanted and peer != name]:
            columns["x best peer"] = [min(taken[peer] for peer in others) / taken[name] for taken in times]
        for measure, values in columns.items():
            p20, p50, p80 = quantiles(values)
            row = {"mode": "views", "case": case, "provider": name, "measure": measure}
            yield row | {"p20": p20, "p50": p50, "p80": p80, "note": note}
    for name in PEERS:
        if why := missing(name):
            yield {"mode": "views", "case": case, "provider": name, "measure": "none", "note": f"not installed: {why}"}


def loader_rows(case: str, rounds: int) -> Iterator[Row]:
    size, batch = SIZES[case], 128 if case == "64" else 32
    make = (lambda number: emoji()[number % 1024]) if case == "64" else (lambda number: mosaic(number % 64))
    workload = Workload("jpg", make, functools.partial(two_views, size), 4096 if case == "64" else 512, batch)
    with tempfile.TemporaryDirectory(prefix="views-") as folder:
        setting = Setting(workload, Path(folder), 1)
        samples = make_all(workload, 1)
        chosen, notes = verified(setting, samples, ["ours"])
        assert chosen, notes
        found = []
        for _ in range(rounds):
            mine = side_by_side(functools.partial(pace, setting, len(samples)), chosen)[0]
            found.append({"ours": mine, "decode": decode_pace(setting, samples)})
    for row in measured(case, found, f"{len(samples)} samples, batches of {batch}, 1 worker"):
        yield row | {"mode": "loader"}


def versions() -> str:
    names = ("torch", "numpy", "pillow", "opencv-python-headless", "simplejpeg", "albumentations", "kornia")
    there = {found.name.lower(): found.version for found in importlib.metadata.distributions()}
    return " ".join(f"{name} {there[name]}" for name in names if name in there)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["views", "loader"], nargs="+", default=["views", "loader"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    device, machine = device_name(torch.device("cpu")), "loaded" if os.getloadavg()[0] > 1.5 else "quiet"
    context = {"rounds": args.rounds, "machine": machine, "device": device, "versions": versions()}
    blank = dict.fromkeys(("mode", "case", "provider", "measure", "p20", "p50", "p80", "note"), "")
    rows = []
    for mode in args.mode:
        for case in SIZES:
            for row in (view_rows if mode == "views" else loader_rows)(case, args.rounds):
                rows.append(blank | row | context)
                cells = f"{row['mode']:8}{row['case']:6}{row['provider']:16}{row['measure']:16}"
                spread = f"   ({row['p20']:.4g} to {row['p80']:.4g})" if "p50" in row else ""
                print(cells, f"{row['p50']:10.4g}" if spread else row["note"], spread, flush=True)
    write_rows(args.out / f"views_{device.replace(' ', '-')}.csv", rows)


if __name__ == "__main__":
    main()
