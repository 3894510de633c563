"""Anomalies in series of the Numenta Anomaly Benchmark: `python benchmarks/nab.py FOLDER`

FOLDER: with data/*/*.csv and labels/combined_windows.json, as https://github.com/numenta/NAB has them (MIT). Of each
series, the first 15 % (the benchmark's probationary part) train a PatchTST by masked_series and give scalers, memories
and thresholds; the rest is judged. Steps within a labelled window are anomalous. Printed are means over the series of
plain F1, point-adjusted F1 (which flatters), AUC-PR and VUS-PR: of the trained network by its head (errors of patches
that are hidden in turn) and by its states, and of a random network, principal components, a polynomial, and chance.

Rows go to benchmarks/results/nab_MACHINE.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import yaml
from measure import RESULTS, device_name, write_rows

from bigssl.cli.main import main as bigssl
from bigssl.report.environment import installed

PROBATION = 0.15
LENGTH, PATCH = 32, 4
BODY = {"patch_length": PATCH, "patch_stride": PATCH, "d_model": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "ffn_dim": 128}  # fmt: skip
MEASURES = ("f1", "f1_adjusted", "auc_pr", "vus_pr")


def write_parts(series: Path, windows: list[list[str]], folder: Path) -> None:
    """train.csv with the values of the probationary part, val.csv with values and marks of the rest. Times of NAB are
    text that sorts."""
    rows = list(csv.DictReader(series.open()))
    cut = round(PROBATION * len(rows))
    spans = [(begin[:19], end[:19]) for begin, end in windows]
    marks = [int(any(begin <= row["timestamp"] <= end for begin, end in spans)) for row in rows]
    folder.mkdir(parents=True)
    lines = [f"{row['value']},{mark}" for row, mark in zip(rows, marks, strict=True)]
    (folder / "train.csv").write_text("\n".join(["value", *(row["value"] for row in rows[:cut])]) + "\n")
    (folder / "val.csv").write_text("\n".join(["value,anomaly", *lines[cut:]]) + "\n")


def run(*words: str) -> None:
    if code := bigssl(list(words)):
        raise SystemExit(f"bigssl {' '.join(words)} ended with {code}")


def judged(series: Path, windows: list[list[str]], folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """The rows of its scorecard."""
    write_parts(series, windows, folder)
    run("shards", "pack", str(folder / "train.csv"), str(folder / "train"), "--as", "series")
    run("shards", "pack", str(folder / "val.csv"), str(folder / "val"), "--as", "series", "--label", "anomaly")
    judging = {"task": "anomaly", "train": str(folder / "train"), "queries": str(folder / "val")}
    recipe = {
        "name": "nab", "out": str(folder / "run"), "seed": seed, "steps": steps,
        "objective": {"name": "masked_series", "source": "normal"},
        "backbones": {"series": {"type": "patchtst", "channels": 1, "length": LENGTH, "config": BODY}},
        "data": {"workers": 1, "sources": {"normal": {"url": str(folder / "train"),
                                                      "windows": {"length": LENGTH, "stride": 1}}}},
        "batch": {"size": 32}, "optim": {"name": "adamw", "lr": 0.002, "warmup": 0.1, "schedule": "cosine"},
        "checkpoint": {"every": steps},
        "evaluate": {"hidden": judging | {"head": "masked_series"}, "states": judging},
    }  # fmt: skip
    (folder / "nab.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    run("train", str(folder / "nab.yaml"), "--ranks", "1")
    rows: dict[str, Any] = json.loads((folder / "run" / "scorecard.json").read_text())["tasks"]
    return rows


def contenders(rows: dict[str, Any], measure: str) -> dict[str, float | None]:
    """By who, one measure of a series."""
    hidden, states = rows[f"hidden/{measure}"], rows[f"states/{measure}"]
    return {"trained, hidden patches": hidden["trained"], "trained, states": states["trained"],
            "random network, hidden patches": hidden["random_net"], "random network, states": states["random_net"],
            "random scores": hidden["blind"], **hidden["raws"]}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    windows = json.loads((options.folder / "labels" / "combined_windows.json").read_text())
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    per_series = []
    with tempfile.TemporaryDirectory() as folder:
        for series in sorted((options.folder / "data").glob("*/*.csv")):
            name = f"{series.parent.name}/{series.name}"
            for seed in range(options.seeds):
                rows = judged(series, windows[name], Path(folder) / series.stem / str(seed), seed, options.steps)
                for measure in MEASURES:
                    for who, value in contenders(rows, measure).items():
                        if value is not None:
                            found[measure, who].append(value)
                            per_series.append({"series": name, "seed": seed, "measure": measure, "contender": who,
                                               "value": value})  # fmt: skip
    for who in dict.fromkeys(who for _, who in found):
        cells = [f"{measure} {statistics.fmean(found[measure, who]):.3f}" for measure in MEASURES]
        print(f"{who:32}{'   '.join(cells)}")
    common = {"steps": options.steps} | {f"{k} version": v for k, v in installed()["packages"].items()}
    machine = "-".join(device_name(torch.device("cpu")).replace("(R)", "").split()[:2])
    write_rows(RESULTS / f"nab_{machine}.csv", [row | common for row in per_series])
    return 0


if __name__ == "__main__":
    sys.exit(main())
