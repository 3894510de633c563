"""PatchTST from a long series to weights against transformers' Trainer: `python benchmarks/patchtst_end_to_end.py`

Both train the same network (the paper's: 3 layers of 128, 16 heads, 512 steps in 42 patches of 12, Nie et al. 2023,
arXiv 2211.14730) on windows of one made series of 17,420 hours and 7 channels, as ETTh1 has, 64 windows a step, AdamW:
hidden patches (masked_series, PatchTSTForPretraining, 40 %) and the next 96 steps (forecast, PatchTSTForPrediction).
Trainer reads windows by slices of an array in memory, ours from a shard by the driver's own loop, without evaluation.
Each run is a process of its own, in turn; the first steps are left out. Printed are medians over rounds of windows a
second, and the peak memory of the process. Rows go to benchmarks/results/patchtst_end_to_end_MACHINE.csv. Exit status 1
where the aim, 1.2 times as many windows, is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, device_name, write_rows
from mlm_end_to_end import Times, peak
from transformers import PatchTSTConfig, PatchTSTForPrediction, PatchTSTForPretraining, Trainer, TrainingArguments

from bigssl.cli.main import main as bigssl
from bigssl.cli.recipes import model
from bigssl.engine import loop, zero
from bigssl.engine.plan import preflight
from bigssl.report.environment import installed
from bigssl.report.metrics import read_metrics

HOURS, CHANNELS, LENGTH, HORIZON, BATCH, LEFT_OUT = 17_420, 7, 512, 96, 64, 3
AIM = 1.2
SIZES = {"patch_length": 12, "patch_stride": 12, "d_model": 128, "num_hidden_layers": 3, "num_attention_heads": 16,
         "ffn_dim": 256}  # fmt: skip
TASKS = {
    "masked_series": ({"ratio": 0.4}, PatchTSTForPretraining, {"do_mask_input": True, "random_mask_ratio": 0.4}),
    "forecast": ({"horizon": HORIZON}, PatchTSTForPrediction, {"prediction_length": HORIZON, "loss": "mse"}),
}
Row = dict[str, Any]


def made_series() -> np.ndarray:
    """float32 [T, C]: days, weeks and a walk."""
    rng, hours = np.random.default_rng(0), np.arange(HOURS)[:, None]
    season = np.sin(2 * np.pi * hours / 24) + 0.5 * np.sin(2 * np.pi * hours / 168)
    walk = np.cumsum(rng.normal(scale=0.1, size=(HOURS, CHANNELS)), 0)
    return (season + walk + rng.normal(scale=0.3, size=(HOURS, CHANNELS))).astype(np.float32)


def ours(task: str, folder: Path, steps: int) -> Row:
    taken = LENGTH + (HORIZON if task == "forecast" else 0)
    values = {
        "name": "peer", "out": str(folder / "run"), "steps": steps, "precision": "fp32", "log_every": 1,
        "objective": {"name": task, "source": "hours", **TASKS[task][0]}, "batch": {"size": BATCH},
        "backbones": {"series": {"type": "patchtst", "channels": CHANNELS, "length": LENGTH, "config": SIZES}},
        "data": {"workers": 1, "sources": {"hours": {"url": str(folder / "hours"),
                                                     "windows": {"length": taken, "stride": 1}}}},
        "optim": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01}, "zero": {"stage": 0},
        "checkpoint": {"every": 100_000},
    }  # fmt: skip
    zero.start()
    recipe = model().model_validate(values)
    with contextlib.redirect_stderr(io.StringIO()):
        loop.train(recipe, preflight.plan(recipe, 1), torch.device("cpu"), None)
    zero.stop()
    rows = read_metrics(recipe.folder)[LEFT_OUT:]
    return {"windows/s": BATCH * len(rows) / sum(BATCH / row["speed/samples_per_s"] for row in rows)}


class Windows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """By their first step."""

    def __init__(self, series: np.ndarray, horizon: int) -> None:
        self.series, self.horizon = torch.from_numpy(series), horizon

    def __len__(self) -> int:
        return len(self.series) - LENGTH - self.horizon + 1

    def __getitem__(self, begin: int) -> dict[str, torch.Tensor]:
        window = {"past_values": self.series[begin : begin + LENGTH]}
        end = begin + LENGTH
        return window | ({"future_values": self.series[end : end + self.horizon]} if self.horizon else {})


def theirs(task: str, folder: Path, steps: int) -> Row:
    _, network, fields = TASKS[task]
    torch.manual_seed(0)
    config = PatchTSTConfig(num_input_channels=CHANNELS, context_length=LENGTH, **SIZES, **fields)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=1e-4,
        weight_decay=0.01, use_cpu=True, report_to=[], logging_steps=1, save_strategy="no", dataloader_num_workers=1,
        disable_tqdm=True, label_names=["past_values"],
    )  # fmt: skip
    times, data = Times(), Windows(made_series(), HORIZON if task == "forecast" else 0)
    with contextlib.redirect_stdout(io.StringIO()):
        Trainer(network(config), arguments, train_dataset=data, callbacks=[times]).train()
    return {"windows/s": BATCH * (steps - LEFT_OUT) / (times.ends[-1] - times.ends[LEFT_OUT - 1])}


CONTENDERS = {"trainer": theirs, "ours": ours}


def run(name: str, task: str, folder: Path, steps: int) -> Row:
    """One contender in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        (Path(own) / "hours").symlink_to(folder / "hours")
        command = [sys.executable, __file__, "--one", name, "--tasks", task, "--steps", str(steps), "--folder", own]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--steps", type=int, default=15, help=f"of a run, the first {LEFT_OUT} of which do not count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        row = CONTENDERS[options.one](options.tasks[0], options.folder, options.steps)
        print(json.dumps(row | {"peak MiB": peak() >> 20}))
        return 0
    rows, good = list[Row](), True
    common = {"rounds": options.rounds, "device": device_name(torch.device("cpu"))}
    common |= {f"{name} version": version for name, version in installed()["packages"].items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "arrays").mkdir()
        np.save(folder / "arrays" / "hours.npy", made_series())
        bigssl(["shards", "pack", str(folder / "arrays"), str(folder / "hours")])
        for task in options.tasks:
            found: dict[str, list[Row]] = {each: [] for each in CONTENDERS}
            for _ in range(options.rounds):
                for each, of in found.items():
                    of.append(run(each, task, folder, options.steps))
            middle = {each: {key: statistics.median(row[key] for row in of) for key in of[0]}
                      for each, of in found.items()}  # fmt: skip
            ratio = middle["ours"]["windows/s"] / middle["trainer"]["windows/s"]
            speeds, peaks = ([middle[each][key] for each in ("ours", "trainer")] for key in ("windows/s", "peak MiB"))
            print(f"{task}: {speeds[0]:.1f} to {speeds[1]:.1f} windows/s: {ratio:.2f} (aim {AIM}); "
                  f"peak {peaks[0]:.0f} to {peaks[1]:.0f} MiB", flush=True)
            rows += [{"task": task, "contender": each} | of | common for each, of in middle.items()]
            good &= ratio >= AIM
    machine = f"{'-'.join(device_name(torch.device('cpu')).replace('(R)', '').split()[:2])}-x{torch.get_num_threads()}"
    write_rows(RESULTS / f"patchtst_end_to_end_{machine}.csv", rows)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
