"""What the driver, a teacher and the start of a command cost: `python benchmarks/overhead.py`

driver: the share of a step that is neither data wait nor forward, backward, optimizer, as the loop itself measures it;
a run of the demo's recipe, the first step left out.
engine: a step of the engine (forward, backward, clipping, optimizer) against the same step by plain torch (AdamW, its
autocast and clipping), on the same batch, in turn.
teacher: `Ema.update` over all of the demo's networks against a whole step (forward, backward, optimizer), in turn, so
that both see the same state of the machine; its result is first compared with its formula.
import, --help: in processes of their own, once for warm caches, then the median; the interpreter's start included.

Prints value, aim and verdict; exit status 1 if an aim is missed. Rows with device and versions go to
benchmarks/results/. About 3 minutes on 2 cores. Times are only worth something where nothing else runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, device_name, in_turn, write_rows
from torch import nn

from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.data.loading.loader import make_loader
from bigssl.engine import loop, zero
from bigssl.engine.optim import build_optimizer
from bigssl.engine.plan import preflight
from bigssl.nets.progress import Progress
from bigssl.objectives.base import config_union
from bigssl.report.environment import installed

ROOT = Path(__file__).parents[1]
AIMS = {"driver": 0.01, "engine": 1.2, "teacher": 0.01, "import bigssl": 1.5, "bigssl --help": 0.7}
COMMANDS = {
    "import bigssl": [sys.executable, "-c", "import bigssl"],
    "bigssl --help": [sys.executable, "-m", "bigssl.cli.main", "--help"],
}
Row = dict[str, Any]


def demo(out: str, steps: int) -> Recipe:
    """The demo's recipe without its evaluation."""
    changes = [f"out={out}", f"steps={steps}", "optim.warmup=1", "batch.accum=1", "checkpoint.every=100000"]
    changes += ["probe=null", "evaluate=null"]
    return load_recipe(ROOT / "launch/recipes/demo.yaml", changes, recipe_model(config_union()))


def driver(recipe: Recipe, plan: preflight.Plan, device: torch.device) -> Row:
    """Share of the driver in a step of `loop.train`."""
    loop.train(recipe, plan, device, None)
    rows = [json.loads(line) for line in (recipe.folder / "metrics.jsonl").read_text().splitlines()]
    shares = [row["speed/driver_overhead"] for row in rows if "speed/driver_overhead" in row][1:]
    return {"what": "driver", "value": statistics.median(shares), "unit": "of a step", "n": len(shares)}


def engine_step(recipe: Recipe, plan: preflight.Plan, device: torch.device) -> tuple[Any, Callable[[], None]]:
    """A batch on the device, and a step over it under the engine."""
    optimizer = build_optimizer(plan.objective.to(device), recipe.optim)
    engine = zero.Engine(plan.objective, optimizer, recipe, micro=plan.micro, accum=plan.accum, bf16=plan.bf16)
    loader = make_loader(
        plan.streams, plan.sizes, plan.objective.prepare, plan.objective.assemble, seed=recipe.seed, rank=0, world=1,
        accum=plan.accum, workers=0, start_step=0, stop_step=1, device_pin=False, warn_after=0, abort_after=0,
    )  # fmt: skip
    batch, at = next(iter(loader)).to(device), Progress(0, recipe.steps)

    def step() -> None:
        engine.backward(engine(batch.data, at).total)
        engine.step()

    step()
    return batch, step


def plain_step(recipe: Recipe, plan: preflight.Plan, device: torch.device, batch: Any) -> Callable[[], None]:
    """The same step by torch alone."""
    task, at = plan.objective.to(device), Progress(0, recipe.steps)
    optimizer = build_optimizer(task, recipe.optim)
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.bf16):
            total = task(batch.data, at).total
        total.backward()
        nn.utils.clip_grad_norm_(trained, recipe.optim.clip)
        optimizer.step()

    return step


def of_a_step(recipe: Recipe, device: torch.device, rounds: int) -> list[Row]:
    """The engine against plain torch, and an update of a teacher of all networks against a step, within one loop."""
    from bigssl.nets.ema import Ema

    plan = preflight.plan(recipe, 1)
    networks = nn.ModuleDict(plan.backbones).to(device)
    ema, at = Ema(networks, 0.99), Progress(0, recipe.steps)
    batch, step = engine_step(recipe, plan, device)
    _verify(ema, networks, at)
    plain = plain_step(recipe, preflight.plan(recipe, 1), device, batch)
    times = in_turn({"step": step, "plain": plain, "update": lambda: ema.update(at)}, device, rounds, "wall")
    middle = {name: time[1] for name, time in times.items()}
    share = middle["update"] / (middle["step"] + middle["update"])
    return [
        {"what": "engine", "value": middle["step"] / middle["plain"], "unit": "of a plain step", "n": rounds},
        {"what": "teacher", "value": share, "unit": "of a step", "n": rounds},
    ]


def _verify(ema: Any, networks: nn.Module, at: Progress) -> None:
    before = copy.deepcopy(list(ema.module.parameters()))
    ema.update(at)
    for old, new, student in zip(before, ema.module.parameters(), networks.parameters(), strict=True):
        torch.testing.assert_close(new, 0.99 * old + 0.01 * student.detach().float(), rtol=1e-5, atol=1e-6)


def start(name: str, rounds: int) -> Row:
    """Seconds of a process."""
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        subprocess.run(COMMANDS[name], check=True, capture_output=True, cwd=ROOT)
        times.append(time.perf_counter() - begin)
    return {"what": name, "value": statistics.median(times[1:]), "unit": "s", "n": rounds}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20, help="of the demo (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="of everything else (%(default)s)")
    options = parser.parse_args()
    device = zero.start()
    rows = [start(name, options.rounds) for name in COMMANDS]
    with tempfile.TemporaryDirectory() as out:
        recipe = demo(out, options.steps)
        plan = preflight.plan(recipe, 1)
        rows.append(driver(recipe, plan, device))
        rows += of_a_step(recipe, device, options.rounds)
    zero.stop()
    versions = installed()
    for row in rows:
        row |= {"aim": AIMS[row["what"]], "device": device_name(device), "python": platform.python_version()}
        row |= {f"{name} version": version for name, version in versions["packages"].items()}  # type: ignore[attr-defined]
    print(f"{'what':16}{'value':>10}{'aim':>8}   on {rows[0]['device']}")
    for row in rows:
        verdict = "" if row["value"] <= row["aim"] else "   missed"
        print(f"{row['what']:16}{row['value']:>10.4f}{row['aim']:>8g} {row['unit']}{verdict}")
    write_rows(RESULTS / f"overhead_{_file_name(rows[0]['device'])}.csv", rows)
    return 1 if any(row["value"] > row["aim"] for row in rows) else 0


def _file_name(device: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in device).split())


if __name__ == "__main__":
    sys.exit(main())
