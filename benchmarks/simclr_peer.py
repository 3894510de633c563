"""SimCLR from files to weights against lightly's loop: `PYTHONPATH=PEERS python benchmarks/simclr_peer.py`

ours: `launch/recipes/cpu/simclr.yaml` by the driver's own loop, without probe and evaluation, over shards. lightly: its
documented example (dataset, SimCLRTransform, SimCLRProjectionHead, NTXentLoss, a pass for each view) over the same
pictures as files, with the same network, batch, precision, strengths of views, optimizer and number of workers; and
the same written by somebody who knows the machine (both views in one pass, channels last). In turn, in one process;
the first steps of each round are left out. Printed is the ratio of the medians over rounds, the aim 1.3.

PEERS: `pip install --no-deps --target PEERS lightly==1.6.0 lightly_utils lightning_utilities aenum torchvision==0.28`.
Rows go to benchmarks/results/simclr_peer_MACHINE.csv. Exit status 1 where the aim is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peers  # noqa: F401 - first: see there
import torch
from measure import RESULTS, device_name, write_rows
from torch import nn
from torch.utils.data import DataLoader

from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.engine import loop, zero
from bigssl.engine.held import let_go
from bigssl.engine.plan import preflight
from bigssl.objectives.base import config_union
from bigssl.report.environment import installed
from bigssl.report.metrics import read_metrics

ROOT = Path(__file__).parents[1]
SHARDS = ROOT / "bigssl" / "demo" / "emoji" / "train"
AIM, LEFT_OUT = 1.3, 5  # steps
Row = dict[str, Any]


def recipe_of(out: str, steps: int) -> Recipe:
    changes = [f"out={out}", f"steps={steps}", "probe=null", "evaluate=null", "checkpoint.every=100000", "log_every=1"]
    return load_recipe(ROOT / "launch/recipes/cpu/simclr.yaml", changes, recipe_model(config_union()))


def ours(steps: int) -> float:
    """Samples a second."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        recipe = recipe_of(f"{folder}/run", steps)
        loop.train(recipe, preflight.plan(recipe, 1), zero.start(), None)
        let_go()
        found = [row["speed/samples_per_s"] for row in read_metrics(recipe.folder)]
    return statistics.harmonic_mean(found[LEFT_OUT:])


class Lightly:
    """Its loop over the pictures in `files`."""

    def __init__(self, files: Path, recipe: Recipe, tuned: bool) -> None:
        from lightly.data import LightlyDataset
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform

        plan = preflight.plan(recipe, 1)
        c, self.bf16, self.tuned = recipe.objective, plan.bf16, tuned
        backbone = plan.objective.backbone
        views = SimCLRTransform(
            input_size=backbone.size, cj_strength=c.augment.jitter, min_scale=c.augment.min_scale,
            gaussian_blur=c.augment.blur,
        )  # fmt: skip
        self.loader = DataLoader(
            LightlyDataset(str(files), transform=views), batch_size=recipe.batch.size, shuffle=True, drop_last=True,
            num_workers=recipe.data.workers, persistent_workers=True,
        )  # fmt: skip
        self.nets = nn.ModuleList([backbone.model, SimCLRProjectionHead(backbone.dim, c.hidden, c.dim)])
        if tuned:
            self.nets.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.nets.parameters(), recipe.optim.lr, weight_decay=0.05)
        self.criterion = NTXentLoss(temperature=c.temperature)

    def _embedded(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.nets[1](self.nets[0](pixel_values=pictures).last_hidden_state.mean((2, 3)))  # type: ignore[no-any-return]

    def _step(self, first: torch.Tensor, second: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            if self.tuned:
                both = torch.cat([first, second]).contiguous(memory_format=torch.channels_last)
                z1, z2 = self._embedded(both).chunk(2)
            else:
                z1, z2 = self._embedded(first), self._embedded(second)
            loss = self.criterion(z1.float(), z2.float())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()

    def run(self, steps: int) -> float:
        """Samples a second."""
        done, begin, samples = 0, 0.0, 0
        while done < steps:
            for views, *_ in self.loader:
                self._step(*views)
                done, samples = done + 1, samples + len(views[0])
                if done == LEFT_OUT:
                    begin, samples = time.perf_counter(), 0
                if done == steps:
                    break
        return samples / (time.perf_counter() - begin)


def unpacked(folder: Path) -> Path:
    """The pictures of the demo as files."""
    for path in sorted(SHARDS.glob("*.tar.gz")):
        with tarfile.open(path) as tar:
            tar.extractall(folder, [each for each in tar if not each.name.endswith(".json")], filter="data")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=40, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device = zero.start()
    with tempfile.TemporaryDirectory() as folder:
        files = unpacked(Path(folder) / "files")
        recipe = recipe_of(f"{folder}/unused", options.steps)
        loops = {"lightly": Lightly(files, recipe, tuned=False), "lightly, tuned": Lightly(files, recipe, tuned=True)}
        found: dict[str, list[float]] = {"ours": [], **{name: [] for name in loops}}
        for _ in range(options.rounds):
            found["ours"].append(ours(options.steps))
            for name, each in loops.items():
                found[name].append(each.run(options.steps))
            print({name: round(values[-1]) for name, values in found.items()}, flush=True)
    zero.stop()
    medians = {name: statistics.median(values) for name, values in found.items()}
    versions = {f"{k} version": v for k, v in installed()["packages"].items()} | {"lightly version": version("lightly")}
    rows: list[Row] = [
        {"loop": name, "samples/s": value, "ours to it": medians["ours"] / value, "aim": AIM, "rounds": options.rounds,
         "device": device_name(device)} | versions for name, value in medians.items()
    ]  # fmt: skip
    for row in rows:
        print(f"{row['loop']:16}{row['samples/s']:9.0f} samples/s{row['ours to it']:8.2f}")
    machine = f"{'-'.join(device_name(device).split()[:2])}-x{torch.get_num_threads()}"
    write_rows(RESULTS / f"simclr_peer_{machine}.csv", rows)
    return int(medians["ours"] / medians["lightly"] < AIM)


if __name__ == "__main__":
    sys.exit(main())
