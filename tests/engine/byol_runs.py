"""A tiny BYOL run and its whole state, from a checkpoint and from plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from bigssl.config.recipe import Recipe
from bigssl.data.loading.loader import MicroBatches
from bigssl.engine import zero
from bigssl.engine.optim import schedule, set_learning_rate
from bigssl.engine.plan.preflight import Plan
from bigssl.engine.saved import MASTER, SavedState
from bigssl.nets.progress import Progress
from bigssl.objectives.byol import Byol

BYOL = {"name": "byol", "source": "emoji", "hidden": 16, "dim": 8, "momentum": 0.9}


def state_of(folder: Path) -> dict[str, Tensor]:
    """Weights, buffers, teachers and the optimizer's state of the newest checkpoint, by name."""
    newest = max((folder / "checkpoints").glob("step-*[0-9]"))
    saved, found = SavedState(newest, zero.TAG), {}
    names = [name for flat in saved.layout.flats for name in flat.names]
    for name in names:
        keys = (MASTER, *saved.keys(name))
        found |= {f"{key} {name}": saved.read(name, key, 0, saved.layout.numel(name)).clone() for key in keys}
        found |= {f"{key} {name}": torch.as_tensor(value) for key, value in saved.scalars(name).items()}
    found |= {f"buffer {name}": value for name, value in saved.module.items() if name not in names}
    teachers = torch.load(newest / "teachers.pt", weights_only=True)
    return found | {f"teacher {name}": value for name, value in teachers["target"].items()}


def steps_by_hand(
    task: Byol, optimizer: torch.optim.Optimizer, plan: Plan, recipe: Recipe, steps: Iterable[int]
) -> None:
    """Steps of `recipe` by PyTorch alone, on one rank."""
    loader = MicroBatches(plan.streams, plan.sizes, task.prepare, task.assemble, recipe.seed, 0, 1, 1)
    trained = [p for p in task.parameters() if p.requires_grad]
    for step in steps:
        at = Progress(step, recipe.steps)
        set_learning_rate(optimizer.param_groups, schedule(recipe.optim, step, recipe.steps))
        optimizer.zero_grad()
        task(loader[step].data, at).total.backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.optim.clip)
        optimizer.step()
        task.target.update(at)


def state_by_hand(task: Byol, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """As `state_of`."""
    found = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            found |= {f"{key} {name}": value.flatten() for key, value in optimizer.state[parameter].items()}
            found |= {f"step {name}": optimizer.state[parameter]["step"]}
            found |= {f"{MASTER} {name}": parameter.detach().flatten()}
    names = [name for name, parameter in task.named_parameters() if parameter.requires_grad]
    found |= {f"buffer {name}": value for name, value in task.state_dict().items() if name not in names}
    return found | {f"teacher {name}": value for name, value in task.target.module.state_dict().items()}


def assert_same_state(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """But for sums in another order; frozen weights may lack, which a stage keeps elsewhere."""
    assert {name for name in want if not name.startswith("buffer")} <= got.keys()
    for name, value in want.items():
        if name in got:
            difference = (got[name].double().flatten() - value.double().flatten()).abs().max().item()
            assert difference <= 2e-3 * (value.abs().max().item() + 1e-2), (name, difference)
