"""A step of each objective of pictures and series against a loop by hand: `python benchmarks/objectives.py [NAME ...]`

ours: engine, loss, backward, clipping, optimizer and the teachers' moves, on a batch of launch/recipes/cpu/NAME.yaml,
as the driver does it but for the loader. by hand: the same maths in plain PyTorch (`by_hand/`), the same networks,
precision, optimizer and batch. First, in fp32, the two losses and the norm of each weight's gradient are compared;
where they differ nothing is timed. Then steps in turn, so that all see the same state of the machine; the ratio is
that of the medians, the aim 1.05. It is that of ZeRO stage 0, since nothing is in slices by hand; `stage 1` is the
ratio with DeepSpeed's slices, of which a single process has the cost alone. `MiB of a step` is what a step takes at its
peak beyond what lies there before it, of ours, in a process of its own.

Rows go to benchmarks/results/objectives_MACHINE.csv. Exit status 1 where a loss differs or an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from by_hand import HANDS, ByHand
from measure import RESULTS, device_name, in_turn, peak_bytes, write_rows
from torch import nn

from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.data.loading.loader import make_loader
from bigssl.engine import zero
from bigssl.engine.optim import build_optimizer
from bigssl.engine.plan import preflight
from bigssl.engine.teaching import teach
from bigssl.nets.progress import Progress
from bigssl.objectives.base import config_union
from bigssl.report.environment import installed

RECIPES = Path(__file__).parents[1] / "launch" / "recipes" / "cpu"
AIM = 1.05
AIMS = {"series_contrast": 1 / 1.5}  # by hand as TS2Vec's own code does it, in which there is more to save
OFF, TINY = 1e-2, 1e-6
"""How far the norm of a weight's gradient may be off, as a share of itself and a trace of all of them: some sums, taken
in another order, fall on the other side of a ReLU's kink."""
HEARD = {"inpainting": ["objective.adversarial=1"]}
"""By task, overrides without which a term is too faint to be compared."""
STILL = {"series_contrast": ["backbones.series.config.dropout=0"]}
"""Overrides without which two passes differ by what they drop."""
MEETING = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of this process, which holds the port
Row = dict[str, Any]


def recipe_of(name: str, out: str, *overrides: str) -> Recipe:
    model = recipe_model(config_union())
    changes = [f"out={out}", "steps=1000", "probe=null", "evaluate=null", "optim.warmup=0", *STILL.get(name, []),
               *overrides]  # fmt: skip
    recipe = load_recipe(RECIPES / f"{name}.yaml", changes, model)
    if hasattr(recipe.objective, "freeze"):  # a hand has no schedules
        recipe = load_recipe(RECIPES / f"{name}.yaml", [*changes, "objective.freeze=0"], model)
    return recipe


def first_batch(recipe: Recipe, plan: preflight.Plan, device: torch.device) -> Any:
    loader = make_loader(
        plan.streams, plan.sizes, plan.objective.prepare, plan.objective.assemble, seed=recipe.seed, rank=0, world=1,
        accum=plan.accum, workers=0, start_step=0, stop_step=1, device_pin=False, warn_after=0, abort_after=0,
    )  # fmt: skip
    return next(iter(loader)).to(device).data


class Ours:
    """The engine's step on one batch of the recipe."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        plan = preflight.plan(recipe, 1)
        self.task, self.bf16 = plan.objective.to(device), plan.bf16
        self.batch, self.at = first_batch(recipe, plan, device), Progress(0, recipe.steps)
        self.by_hand = HANDS[recipe.objective.name](self.task)
        optimizer = build_optimizer(self.task, recipe.optim)
        self.engine = zero.Engine(self.task, optimizer, recipe, micro=plan.micro, accum=1, bf16=plan.bf16)

    def step(self) -> None:
        self.engine.backward(self.engine(self.batch, self.at).total)
        self.engine.step()
        teach(self.task.teachers(), self.at)


class Hand:
    """The same by hand."""

    def __init__(self, made: ByHand, batch: Any, recipe: Recipe, bf16: bool) -> None:
        self.made, self.batch, self.bf16, self.clip = made, batch, bf16, recipe.optim.clip
        decay, optim = recipe.optim.weight_decay, recipe.optim
        self.trained = [p for p in made.nets.parameters() if p.requires_grad]
        groups = [{"params": [p for p in self.trained if p.dim() > 1], "weight_decay": decay},
                  {"params": [p for p in self.trained if p.dim() <= 1], "weight_decay": 0.0}]  # fmt: skip
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps) if optim.name == "adamw" else
            torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum))  # fmt: skip
        self.moves = [(list(a.parameters()), list(b.parameters()), m) for a, b, m in made.teachers]

    def _forward(self) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return self.made.loss(self.batch)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self._forward().backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        with torch.no_grad():
            for slow, student, momentum in self.moves:
                torch._foreach_lerp_(slow, student, 1 - momentum)
            self.made.after()


def norms(loss: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """float64 [P]: of the gradient of each weight, by the weight's shape and then by size: each side has its names."""
    loss.backward()
    found = sorted((tuple(p.shape), 0.0 if p.grad is None else float(p.grad.double().norm()))
                   for p in module.parameters() if p.requires_grad)  # fmt: skip
    return torch.tensor([norm for _, norm in found], dtype=torch.float64)


def verify(name: str, device: torch.device) -> None:
    """Raises ValueError where the two sides are not the same maths."""
    with tempfile.TemporaryDirectory() as out:
        recipe = recipe_of(name, out, "precision=fp32", *HEARD.get(name, []))
        plan = preflight.plan(recipe, 1)
        task, batch = plan.objective.to(device), first_batch(recipe, plan, device)
        made = HANDS[recipe.objective.name](task)
        mine, other = task(batch, Progress(0, recipe.steps)).total, made.loss(batch)
        grads, others = norms(mine, task), norms(other, made.nets)
    if len(grads) != len(others) or abs(float(mine - other)) > 1e-4 * max(1.0, abs(float(other))):
        raise ValueError(f"the loss is {float(mine):.6g} of {len(grads)} weights, by hand {float(other):.6g} "
                         f"of {len(others)}: not the same maths, not timed")  # fmt: skip
    off = float(((grads - others).abs() / (others + TINY * float(others.norm()))).max())
    if off > OFF:
        raise ValueError(f"a gradient's norm is off by {off:.2g} of itself: not the same maths, not timed")


def compare(name: str, rounds: int, device: torch.device) -> Row:
    """Losses and gradients first; then the ratios of steps."""
    verify(name, device)
    with tempfile.TemporaryDirectory() as out:
        recipe = recipe_of(name, out, "zero.stage=0")
        ours, sliced = Ours(recipe, device), Ours(recipe_of(name, out, "zero.stage=1"), device)
        theirs = Hand(ours.by_hand, ours.batch, recipe, ours.bf16)
        steps = {"ours": ours.step, "stage 1": sliced.step, "by hand": theirs.step}
        found = {side: 1e3 * times[1] for side, times in in_turn(steps, device, rounds, "wall").items()}
    hand = found["by hand"]
    return {"objective": name, "ms": found["ours"], "ms at stage 1": found["stage 1"], "ms by hand": hand,
            "ratio": found["ours"] / hand, "ratio at stage 1": found["stage 1"] / hand, "aim": AIMS.get(name, AIM),
            "n": rounds}  # fmt: skip


def memory(name: str, device: torch.device) -> None:
    """Prints the bytes of a first step: pages that were freed stay, so only the first step of a process tells."""
    with tempfile.TemporaryDirectory() as out:
        print(json.dumps(peak_bytes(Ours(recipe_of(name, out), device).step, device)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=sorted(HANDS), help="of %(default)s")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", action="store_true", help="of one objective, nothing else")
    options = parser.parse_args()
    device = zero.start()
    if options.memory:
        memory(options.names[0], device)
        return 0
    rows, wrong = [], []
    for name in options.names:
        try:
            row = compare(name, options.rounds, device)
        except ValueError as error:
            print(f"{name:16} {error}", flush=True)
            wrong.append(name)
            continue
        command = [sys.executable, __file__, name, "--memory"]
        alone = {key: value for key, value in os.environ.items() if key not in MEETING}
        told = subprocess.run(command, check=True, capture_output=True, env=alone).stdout
        row["MiB of a step"] = int(told.split()[-1]) / 2**20
        row |= {"device": device_name(device)} | {f"{k} version": v for k, v in installed()["packages"].items()}
        rows.append(row)
        said = "" if row["ratio"] <= row["aim"] else "   missed"
        print(f"{name:16}{row['ms']:9.1f} ms{row['ratio']:8.3f}   at stage 1{row['ratio at stage 1']:8.3f}"
              f"{row['MiB of a step']:9.0f} MiB{said}", flush=True)  # fmt: skip
    zero.stop()
    if sorted(options.names) == sorted(HANDS) and not wrong:
        write_rows(RESULTS / f"objectives_{'-'.join(device_name(device).split()[:2])}.csv", rows)
    return int(bool(wrong) or any(row["ratio"] > row["aim"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
