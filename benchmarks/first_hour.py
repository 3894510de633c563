"""A newcomer's first minute: `python benchmarks/first_hour.py`

Seconds from `bigssl init simclr photos` on a folder of 300 pictures in three class folders (made here, 64 pixels a
side) to the first training step of `bigssl train`, as a user types them, in processes of their own:

init:        packs, looks at the samples, checks the recipe, writes it
train:       from its start to the first line of metrics.jsonl

The recipe is then stopped and checked: the step has a finite loss. Prints each phase, the sum, the aim and the load of
the machine; exit status 1 where the aim is missed. Times are only worth something where nothing else runs.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

AIM = 60.0  # seconds
PICTURES, SIDE = 300, 64
BIGSSL = [sys.executable, "-m", "bigssl"]


def make_pictures(folder: Path) -> None:
    """Three classes: of one colour in the middle each, with noise."""
    draw = np.random.default_rng(0)
    for number in range(PICTURES):
        kind = number % 3
        pixels = draw.normal(100, 60, (SIDE, SIDE, 3))
        pixels[..., kind] += 80
        path = folder / "abc"[kind] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def first_step(folder: Path, metrics: Path) -> float:
    """Seconds from the start of `bigssl train` to its first record; the run is stopped then."""
    begin = time.monotonic()
    run = subprocess.Popen([*BIGSSL, "train", "photos-simclr.yaml"], cwd=folder, stdout=subprocess.DEVNULL,
                           stderr=subprocess.STDOUT)  # fmt: skip
    try:
        while not (metrics.is_file() and metrics.read_text().strip()):
            if run.poll() is not None or time.monotonic() - begin > 10 * AIM:
                raise SystemExit(f"no step was made: bigssl train ended with {run.poll()}")
            time.sleep(0.05)
        return time.monotonic() - begin
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGTERM)
            run.wait(timeout=120)


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "photos")
        begin = time.monotonic()
        subprocess.run([*BIGSSL, "init", "simclr", "photos"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        init = time.monotonic() - begin
        metrics = folder / "runs" / "photos-simclr" / "metrics.jsonl"
        train = first_step(folder, metrics)
        record = json.loads(metrics.read_text().splitlines()[0])
        assert record["step"] == 1 and math.isfinite(record["loss"]), record
    total = init + train
    verdict = "met" if total <= AIM else "missed"
    print(f"init {init:.1f} s, train to the first step {train:.1f} s, together {total:.1f} s; aim {AIM:.0f} s: "
          f"{verdict}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")  # fmt: skip
    return int(total > AIM)


if __name__ == "__main__":
    sys.exit(main())
