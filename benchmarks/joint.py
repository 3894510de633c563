"""A step of a joint recipe against the sum of its parts' steps: `python benchmarks/joint.py [RECIPE]`

Engine, losses, backward, clipping, optimizer and teachers' moves on one batch, as the driver does it but for the
loader, of the recipe (default launch/recipes/cpu/joint.yaml) and of each part alone (as `bigssl ablate` trains them).
All take their steps in turn, in one process. The ratio is the median of joint steps over the sum of the parts'
medians, the aim 1.05; beside it that of a step that looks at gradients, and what looking costs at the recipe's `watch`.

Rows go to benchmarks/results/joint_MACHINE.csv. Exit status 1 where the aim is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, device_name, in_turn, write_rows
from objectives import first_batch

from bigssl.cli.ablate import TOGETHER, variants
from bigssl.cli.recipes import model
from bigssl.config.recipe import Recipe, load_recipe
from bigssl.engine import zero
from bigssl.engine.optim import build_optimizer
from bigssl.engine.plan import preflight
from bigssl.engine.teaching import teach
from bigssl.nets.progress import Progress
from bigssl.report.environment import installed

RECIPE = Path(__file__).parents[1] / "launch" / "recipes" / "cpu" / "joint.yaml"
AIM = 1.05
SUM = "of the parts' sum"
LOOKS = "joint, looking at gradients"


class Steps:
    """Of one recipe, on its first batch."""

    def __init__(self, recipe: Recipe, device: torch.device, looking: bool = False) -> None:
        plan = preflight.plan(recipe, 1)
        self.task = plan.objective.to(device)
        self.batch = first_batch(recipe, plan, device)
        self.at = Progress(0 if looking else 1, recipe.steps)  # with `watch`, gradients are looked at in step 0
        optimizer = build_optimizer(self.task, recipe.optim)
        self.engine = zero.Engine(self.task, optimizer, recipe, micro=plan.micro, accum=1, bf16=plan.bf16)

    def __call__(self) -> None:
        self.engine.backward(self.engine(self.batch, self.at).total)
        self.engine.step()
        teach(self.task.teachers(), self.at)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=RECIPE)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    device = zero.start()
    with tempfile.TemporaryDirectory() as folder:
        changes = [f"out={folder}/run", "probe=null", "evaluate=null", "zero.stage=0"]
        recipe = load_recipe(options.recipe, changes, model())
        made = {part: model().model_validate(values) for part, values in variants(recipe).items()}
        steps: dict[str, Any] = {part: Steps(each, device) for part, each in made.items()}
        if watched := recipe.objective.watch:
            steps[LOOKS] = Steps(recipe, device, looking=True)
        found = {part: 1e3 * times[1] for part, times in in_turn(steps, device, options.rounds, "wall").items()}
    zero.stop()
    alone = sum(ms for part, ms in found.items() if part not in (TOGETHER, LOOKS))
    common = {"n": options.rounds, "device": device_name(device)} | {
        f"{name} version": value for name, value in installed()["packages"].items()}  # fmt: skip
    rows = [{"recipe": options.recipe.stem, "what": part, "ms": ms, SUM: ms / alone} | common
            for part, ms in found.items()]  # fmt: skip
    for row in rows:
        print(f"{row['what']:32}{row['ms']:9.1f} ms{row[SUM]:8.3f}")
    if watched:
        print(f"looking every {watched} steps costs {(found[LOOKS] / found[TOGETHER] - 1) / watched:.1%} of a step")
    machine = f"{'-'.join(device_name(device).replace('(R)', '').split()[:2])}-x{torch.get_num_threads()}"
    write_rows(RESULTS / f"joint_{machine}.csv", rows)
    return int(found[TOGETHER] / alone > AIM)


if __name__ == "__main__":
    sys.exit(main())
