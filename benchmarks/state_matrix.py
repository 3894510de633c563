"""Does a run that moves between numbers of ranks keep its whole state? `python benchmarks/state_matrix.py`

A small network is trained for 3 steps on 1 rank, resumed on 2, on 4 and on 1 again, at each ZeRO stage and with each
optimizer, and once with another stage in each part. Each part begins with other random weights, so that what a resume
forgets is seen. The end is compared with plain PyTorch in one process that never stopped, whose parameter groups,
clipping and constraints are written by hand: weights, buffers, frozen parameters, extra state, a teacher, the
optimizer's state and step count, and the settings of each group, all by parameter name.

Prints the largest difference of each cell, relative to max(1, |value|); exit status 1 if one is above TOLERANCE.
About 3 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import math
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.multiprocessing as mp
from state_network import Network, capped, unit_rows
from torch import Tensor, nn

from bigssl.config.optim import NOT_DECAYED, WITHOUT_BETAS, OptimConfig
from bigssl.config.recipe import CheckpointConfig, Recipe
from bigssl.engine import zero
from bigssl.engine.checkpoint import CheckpointStore
from bigssl.engine.layerwise import Lamb, Lars
from bigssl.engine.optim import build_optimizer, schedule, set_learning_rate
from bigssl.engine.saved import MASTER, SavedState
from bigssl.engine.teaching import teach
from bigssl.nets.progress import Progress

WORLDS, STEPS, BATCH = (1, 2, 4, 1), 3, 8  # STEPS on each of WORLDS
STAGES = ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3), (0, 3, 2, 1))
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 0.01, "clip": 0.2},
    "lamb": {"lr": 0.02, "clip": 0.2},
    "lars": {"lr": 0.5, "momentum": 0.8, "clip": 0.2, "trust": 0.1},
    "sgd": {"lr": 0.05, "momentum": 0.8, "clip": 0.2},
    "muon": {"lr": 0.02, "adam_lr": 0.005, "clip": 0.0},
}
OWN = {"lr": 0.5, "weight_decay": 0.3, "clip": 0.05}  # of the embedding and the norm
BETAS = (0.8, 0.95)
TOLERANCE = 2e-6  # sums of 8 samples in another order, over 12 steps; what is lost shows at 1e-2 and more
State = dict[str, Any]  # names to tensors or numbers


def recipe(optimizer: str, stage: int) -> Recipe:
    steps = len(WORLDS) * STEPS
    options = {"reduce_bucket_size": 1000} if stage else {}
    if stage == 3:  # some parameters whole, some sliced; several flat tensors in a group
        options |= {"stage3_param_persistence_threshold": 20, "sub_group_size": 100}
    return Recipe.model_validate({
        "name": "state", "steps": steps, "objective": {}, "backbones": {"unused": {"type": "resnet"}},
        "data": {"sources": {}}, "batch": {"size": BATCH}, "zero": {"stage": stage, "options": options},
        "optim": {"name": optimizer, "warmup": 2, "weight_decay": 0.1, "no_decay": [*NOT_DECAYED, "^tied"],
                  "groups": groups_of(optimizer), **OPTIMIZERS[optimizer]},
    })  # fmt: skip


def groups_of(optimizer: str) -> list[dict[str, Any]]:
    """Of the recipe. The scale has fewer elements than there are ranks, and the network asks for it too."""
    betas = {"betas": BETAS} if optimizer not in WITHOUT_BETAS else {}
    return [{"pattern": "scale$", "lr": 3.0}, {"pattern": "^(embed|norm)", **OWN, **betas}]


def optimizer_of(network: Network, config: Recipe) -> torch.optim.Optimizer:
    return build_optimizer(network, config.optim)


def by_hand(network: Network, config: OptimConfig) -> torch.optim.Optimizer:
    """What the recipe and the network ask for, a group for each parameter."""
    settings = {  # factor on the rate, weight decay, group of its own
        "embed.weight": (0.5, 0.3, True), "norm.weight": (0.5, 0.0, True), "norm.bias": (0.5, 0.0, True),
        "first.weight": (1.0, 0.1, False), "second.weight": (1.0, 0.1, False), "second.bias": (1.0, 0.0, False),
        "third.weight": (1.0, 0.0, False), "last.weight": (2.0, 0.0, False), "last.bias": (2.0, 0.0, False),
        "scale": (3.0, 0.0, False),
    }  # fmt: skip
    matrices, kept = ("first.weight", "second.weight", "last.weight"), ("third.weight", "scale")
    groups = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        factor, decay, own = settings[name]
        muon = config.name == "muon" and name in matrices
        rate = factor * (config.lr if config.name != "muon" or muon else config.adam_lr or 0.0)
        group = {"params": [parameter], "lr": rate, "initial_lr": rate, "weight_decay": decay}
        group |= {"clip": 0.05, "clip_group": 1} if own else {"clip": config.clip, "clip_group": -1}
        if muon or config.name in WITHOUT_BETAS:
            group |= {"momentum": config.momentum}
        else:
            group |= {"betas": BETAS if own else config.betas, "eps": config.eps}
        if config.name == "muon":
            group |= {"use_muon": muon}
        elif config.name in ("lamb", "lars"):
            group |= {"adapt": parameter.dim() > 1 and name not in kept}
        groups.append(group)
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW, "lamb": Lamb, "lars": Lars, "muon": zero.muon,
        "sgd": torch.optim.SGD,
    }  # fmt: skip
    own = {"muon": {}, "lars": {"lr": config.lr, "trust": config.trust}}.get(config.name, {"lr": config.lr})
    return kinds[config.name](groups, **own)


@torch.no_grad()
def constrain_by_hand(network: Network) -> None:
    network.second.weight.copy_(unit_rows(network.second.weight))
    network.scale.copy_(capped(network.scale))


def samples(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(11, (BATCH, 3), generator=generator), torch.randn(BATCH, 5, generator=generator)


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Muon's iteration in float32, as on processors without float16 and bfloat16: on those with them, a sum of a
    gradient in another order that falls over an edge of float16 is 2e-4 of a weight."""
    accelerator = importlib.import_module("deepspeed.accelerator").get_accelerator()
    with (mock.patch.object(accelerator, "is_bf16_supported", lambda: False),
          mock.patch.object(accelerator, "is_fp16_supported", lambda: False)):  # fmt: skip
        yield


@in_float32()
def part(optimizer: str, stage: int, number: int, folder: Path) -> dict[str, Tensor]:
    """Train one part on the ranks that call it, from the checkpoint of the one before; the weights of forward."""
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN: nothing may rest on what was in memory
    torch.compiler.set_stance("force_eager")  # Muon's kernel, which each rank would compile
    zero.start()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    config, network = recipe(optimizer, stage), Network(seed=number)
    nn.init.normal_(network.frozen.weight)
    engine = zero.Engine(network, optimizer_of(network, config), config, micro=BATCH // world, accum=1, bf16=False)
    teachers = {"slow": network.teacher}
    store = CheckpointStore(folder, CheckpointConfig(keep=9), {"world": world}, print, teachers)
    start = store.resume(engine)
    assert start == number * STEPS, f"resumed after step {start}"
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for step in range(start, start + STEPS):
        set_learning_rate(engine.groups, schedule(config.optim, step, config.steps))
        tokens, target = samples(step)
        engine.backward(engine((tokens[mine], target[mine])))
        engine.step()
        teach(teachers, Progress(step, config.steps))
    store.save(engine, start + STEPS)
    taught = {f"teacher {name}": value for name, value in network.teacher.module.state_dict().items()}
    return zero.full_state(network) | taught


@in_float32()
def uninterrupted(optimizer: str) -> State:
    """The reference: no DeepSpeed, no checkpoint, one process."""
    config, network = recipe(optimizer, 0), Network(seed=0)
    nn.init.normal_(network.frozen.weight)
    plain = by_hand(network, config.optim)
    own = [*network.embed.parameters(), *network.norm.parameters()]
    rest = [p for p in network.parameters() if not any(p is other for other in own)]
    for step in range(config.steps):
        set_learning_rate(plain.param_groups, schedule(config.optim, step, config.steps))
        loss = network(samples(step))
        plain.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(own, 0.05)
        nn.utils.clip_grad_norm_(rest, config.optim.clip or 1e9)
        plain.step()
        constrain_by_hand(network)
        momentum = 1 - 0.3 * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        with torch.no_grad():
            followed = dict(network.teacher.student.named_parameters())
            for name, mine in network.teacher.module.named_parameters():
                mine.copy_(momentum * mine + (1 - momentum) * followed[name])
    state: State = {f"weights {name}": value for name, value in network.state_dict().items()}
    state |= {f"weights teacher {name}": value for name, value in network.teacher.module.state_dict().items()}
    names = {parameter: name for name, parameter in network.named_parameters()}
    for group in plain.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            state |= {f"{MASTER} {name}": parameter.detach()} | _settings(name, group)
            state |= {f"{key} {name}": value for key, value in plain.state[parameter].items()}
    return state


def _settings(name: str, group: dict[str, Any]) -> State:
    settings: State = {}
    for key in group.keys() - {"fused", "foreach"}:  # how torch computes a step, not which
        values = value if isinstance(value := group[key], tuple) else (value,)
        settings |= {f"group {key}{i} {name}": v for i, v in enumerate(values) if isinstance(v, (int, float))}
    return settings


def saved(folder: Path, weights: dict[str, Tensor]) -> State:
    """The last checkpoint in the form of `uninterrupted`, with the live weights in place of the stored ones."""
    path = max(folder.glob("step-*"))
    reader = SavedState(path, zero.TAG)
    state: State = {f"weights {name}": value for name, value in weights.items()}
    state |= {f"weights {name}": value for name, value in reader.module.items() if name not in weights}
    for flat in reader.layout.flats:
        for name in flat.names:
            for key in (MASTER, *reader.keys(name)):
                values = reader.read(name, key, 0, reader.layout.numel(name))
                state[f"{key} {name}"] = values.view(reader.layout.shapes[name])
            state |= {f"{key} {name}": value for key, value in reader.scalars(name).items()}
            state |= _settings(name, reader.groups[flat.group])
    return state


def difference(got: State, want: State) -> tuple[float, str]:
    """The largest difference and where it is; infinite where something is missing."""
    if missing := got.keys() ^ want.keys():
        return float("inf"), f"only on one side: {min(missing)}"
    worst = {}
    for name, value in want.items():
        a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (got[name], value))
        same_shape = a.shape == b.shape
        worst[name] = float(((a - b).abs() / b.abs().clamp(min=1)).max()) if same_shape else float("inf")
    name = max(worst, key=lambda n: worst[n])
    return worst[name], name


def cell(
    optimizer: str, stages: tuple[int, ...], folder: Path, spawn: Callable[..., list[Any]], worlds: tuple[int, ...]
) -> tuple[float, str]:
    """Difference of one cell; `spawn(function, world, *args)` runs ranks as the test fixture `ranks` does."""
    weights: dict[str, Tensor] = {}
    for number, (stage, world) in enumerate(zip(stages, worlds, strict=True)):
        weights = spawn(part, world, optimizer, stage, number, folder)[0]
    with torch.compiler.set_stance("force_eager"):
        return difference(saved(folder, weights), uninterrupted(optimizer))


def _rank(function: Callable[..., Any], rank: int, world: int, port: str, out: str, args: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.save(function(*args), f"{out}/{rank}.pt")
    os._exit(0)


def spawn_ranks(function: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """What `function(*args)` returns on each of `world` forked processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as out:
        ranks = [
            mp.get_context("fork").Process(target=_rank, args=(function, rank, world, port, out, args))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            raise RuntimeError(f"a rank of {world} failed, see above")
        return [torch.load(f"{out}/{rank}.pt") for rank in range(world)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # DeepSpeed calls our optimizers untested
    wrong = []
    print(f"largest difference of the whole state, ranks {' -> '.join(map(str, WORLDS))}; tolerance {TOLERANCE:.0e}")
    print(f"{'ZeRO stage':16}" + "".join(f"{name:>10}" for name in options.optimizers))
    for stages in STAGES:
        changes = any(a != b for a, b in pairwise(stages))
        print(f"{'->'.join(map(str, stages)) if changes else stages[0]!s:16}", end="", flush=True)
        for optimizer in options.optimizers:
            with tempfile.TemporaryDirectory() as folder:
                value, name = cell(optimizer, stages, Path(folder), spawn_ranks, WORLDS)
            print(f"{value:10.1e}", end="", flush=True)
            if not value <= TOLERANCE:
                wrong.append(f"{optimizer}, stages {stages}: {name} differs by {value:.1e}")
        print()
    print("\n".join(wrong) or "every cell is within its tolerance")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
