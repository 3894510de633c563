"""One rank of a measurement: steps of a recipe at several micro-batches, collectives, data, a checkpoint.

Run by `scaling.py --measure` in as many processes as ranks; rank 0 leaves what it found in a JSON file.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bigssl import distributed
from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.data.loading.loader import make_loader
from bigssl.engine import zero
from bigssl.engine.checkpoint import CheckpointStore
from bigssl.engine.optim import build_optimizer
from bigssl.engine.plan import preflight
from bigssl.engine.plan.facts import facts
from bigssl.engine.plan.memory import checkpoint_bytes
from bigssl.engine.plan.sources import source_order
from bigssl.engine.teaching import teach
from bigssl.nets.progress import Progress
from bigssl.objectives.base import config_union

KINDS = {
    "allreduce_": "all_reduce", "_allgather_base_": "all_gather", "allgather_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter", "reduce_scatter_": "reduce_scatter", "broadcast_": "broadcast",
    "reduce_": "reduce",
    "all_reduce": "all_reduce", "all_gather_into_tensor": "all_gather", "reduce_scatter_tensor": "reduce_scatter",
}  # fmt: skip
"""Operators of c10d and _c10d_functional."""


@dataclass
class Asked:
    """What a rank measures. overrides: of the recipe. micros: samples a rank. sizes: bytes of collectives."""

    recipe: str
    out: str
    overrides: list[str] = field(default_factory=list)
    micros: list[int] = field(default_factory=lambda: [4, 8])
    steps: int = 8
    sizes: list[int] = field(default_factory=list)
    checkpoint: bool = True
    samples: int = 32
    began: float = 0.0


class Recorded(TorchDispatchMode):
    """The collectives that run within it: (kind, bytes) to how often. Of an all-gather, bytes of its result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        namespace, _, name = func._overloadpacket._qualified_op_name.partition("::")
        if namespace in ("c10d", "_c10d_functional") and name in KINDS:
            kind = KINDS[name]
            value = args[1] if name in ("_reduce_scatter_base_", "reduce_scatter_") else args[0]
            if namespace == "_c10d_functional" and kind == "all_gather":
                value = out
            self.calls[kind, sum(t.nbytes for t in tree_leaves(value) if isinstance(t, Tensor))] += 1
        return out


def recipe_at(asked: Asked, micro: int, world: int, out: str) -> Recipe:
    """The recipe at `micro` samples a rank, all in one pass; sources keep their proportions."""
    model = recipe_model(config_union())
    fixed = [f"out={out}", "steps=100000", "optim.warmup=0", "probe=null", "evaluate=null"]
    base = load_recipe(asked.recipe, [*asked.overrides, *fixed], model)
    sizes = [f"batch.size={micro * world}", "batch.accum=1", "batch.cached=false"]
    for name, source in base.data.sources.items():
        if source.batch:
            sizes.append(f"data.sources.{name}.batch={max(1, round(micro * source.batch / base.batch.size)) * world}")
    return load_recipe(asked.recipe, [*asked.overrides, *fixed, *sizes], model)


class Rig:
    """A recipe's engine on this rank, and its batches."""

    def __init__(self, asked: Asked, device: torch.device, out: str) -> None:
        self.asked, self.device, self.out, self.world = asked, device, out, distributed.world()
        self.recipe = recipe_at(asked, max(asked.micros), self.world, out)
        self.plan = plan = preflight.plan(self.recipe, self.world)
        if self.recipe.zero.stage < 3:
            plan.objective.to(device)
        self.expected = checkpoint_bytes(plan.objective, self.recipe)
        optimizer = build_optimizer(plan.objective, self.recipe.optim)
        self.engine = zero.Engine(plan.objective, optimizer, self.recipe, micro=plan.micro, accum=1, bf16=plan.bf16)
        self.at, self.teachers = Progress(0, self.recipe.steps), plan.objective.teachers()
        self.batches: dict[int, Any] = {}

    def loader(self, micro: int, count: int) -> Any:
        recipe = recipe_at(self.asked, micro, self.world, self.out)
        sizes = preflight.batch_sizes(recipe, self.plan.objective)
        streams = {name: source_order(recipe, name, size, self.world) for name, size in sizes.items()}
        objective = self.plan.objective
        return make_loader(
            streams, sizes, objective.prepare, objective.assemble, seed=0, rank=distributed.rank(), world=self.world,
            accum=1, workers=0, start_step=0, stop_step=count, device_pin=False, warn_after=0, abort_after=0,
        )  # fmt: skip

    def batch(self, micro: int) -> Any:
        if micro not in self.batches:
            self.batches[micro] = next(iter(self.loader(micro, 1))).to(self.device).data
        return self.batches[micro]

    def wait(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def step(self, data: Any, phases: dict[str, list[float]] | None = None) -> None:
        marks = [self.wait()]
        losses = self.engine(data, self.at)
        marks += [self.wait()] if phases is not None else []
        self.engine.backward(losses.total)
        marks += [self.wait()] if phases is not None else []
        self.engine.step()
        teach(self.teachers, self.at)
        if phases is not None:
            marks.append(self.wait())
            for name, begin, end in zip(("forward", "backward", "update"), marks, marks[1:], strict=False):
                phases[name].append(end - begin)

    def steps(self, micro: int, count: int) -> dict[str, list[float]]:
        """Seconds of phases (the device waited for after each) and of whole steps, of `count` steps of each kind; cpu:
        those that the threads of this process took for whole steps; thread: of them that which computes (on a GPU:
        issues), which uses none while it waits for other ranks."""
        data = self.batch(micro)
        found: dict[str, list[float]] = {"forward": [], "backward": [], "update": [], "total": [],
                                         "cpu": [], "thread": []}  # fmt: skip
        for _ in range(3):
            self.step(data)
        for _ in range(count):
            self.step(data, found)
        distributed.barrier()
        for _ in range(count):
            begin, used, mine = self.wait(), time.process_time(), time.thread_time()
            self.step(data)
            found["total"].append(self.wait() - begin)
            found["cpu"].append(time.process_time() - used)
            found["thread"].append(time.thread_time() - mine)
        return found

    def sent(self, micro: int) -> list[tuple[str, int, int]]:
        """(kind, bytes, count) of what a step sends."""
        data = self.batch(micro)
        with Recorded() as recorded:
            self.step(data)
        return [(kind, size, count) for (kind, size), count in sorted(recorded.calls.items())]

    def data(self, samples: int) -> float:
        """Samples/s (of all sources) that this process reads and prepares, after a first batch."""
        micro = min(self.asked.micros)
        count = max(2, samples // micro)
        batches = iter(self.loader(micro, count + 1))
        next(batches)
        begin = time.perf_counter()
        for _ in batches:
            pass
        return count * micro / (time.perf_counter() - begin)

    def save(self) -> dict[str, float]:
        """Bytes and seconds of a checkpoint, all of it: files, hashes, the ranks' meetings."""
        plan = self.plan
        known = facts(1, self.world, plan.streams, plan.backbones, plan.objective)
        folder = Path(self.out) / "checkpoints"
        store = CheckpointStore(folder, self.recipe.checkpoint, known, lambda _: None, self.teachers, self.expected)
        distributed.barrier()
        begin = time.perf_counter()
        store.save(self.engine, 1)
        seconds = time.perf_counter() - begin
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return {"seconds": seconds, "bytes": written, "planned": self.expected}


def time_collectives(sizes: list[int], device: torch.device, rounds: int = 7) -> dict[str, list[tuple[int, float]]]:
    """{kind: [(bytes, seconds)]} of the default group, the fastest of `rounds`: what the wire and the copies take."""
    found: dict[str, list[tuple[int, float]]] = {}
    world = distributed.world()
    for kind in ("all_reduce", "all_gather") if world > 1 else ():
        for size in sizes:
            whole = torch.zeros(max(1, size // 4 // world) * world, device=device)
            part = whole[: len(whole) // world].clone()

            def call(kind: str = kind, whole: Tensor = whole, part: Tensor = part) -> None:
                if kind == "all_reduce":
                    dist.all_reduce(whole)
                else:
                    dist.all_gather_into_tensor(whole, part)

            found.setdefault(kind, []).append((whole.nbytes, _fastest(call, rounds, device)))
    return found


def _fastest(call: Callable[[], None], rounds: int, device: torch.device) -> float:
    times = []
    for n in range(rounds + 1):
        dist.barrier()
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times += [time.perf_counter() - begin] if n else []
    return min(times)


def measure_rank(asked: Asked) -> dict[str, Any]:
    """All that is asked for, as plain values. Collective."""
    device = zero.start()
    with tempfile.TemporaryDirectory() as own:
        out = distributed.from_main(own)
        rig = Rig(asked, device, f"{out}/run")
        rig.step(rig.batch(min(asked.micros)))
        found: dict[str, Any] = {"start": time.time() - asked.began, "world": distributed.world()}
        found["steps"] = {str(micro): rig.steps(micro, asked.steps) for micro in asked.micros}
        found["sent"] = {str(micro): rig.sent(micro) for micro in asked.micros if distributed.active()}
        found["collectives"] = time_collectives(asked.sizes, device)
        found["samples/s of a worker"] = rig.data(asked.samples)
        found["checkpoint"] = rig.save() if asked.checkpoint else None
        found["sources"] = {name: stream_facts(order) | {"share": rig.plan.sizes[name] / rig.recipe.batch.size}
                            for name, order in rig.plan.streams.items()}  # fmt: skip
        found["stage"], found["name"] = rig.recipe.zero.stage, rig.recipe.name
        found["bf16"], found["threads"] = rig.plan.bf16, torch.get_num_threads()
        if device.type == "cuda":
            found["peak bytes"] = torch.cuda.max_memory_allocated(device)
        distributed.barrier()
    zero.stop()
    return found


def stream_facts(order: Any) -> dict[str, float]:
    """Mean bytes of a sample, and samples of a shard."""
    shards = [shard for index in order.indexes.values() for shard in index.shards]
    samples = sum(shard.samples for shard in shards)
    return {"sample bytes": sum(shard.bytes for shard in shards) / samples, "samples per shard": samples / len(shards)}


def main() -> int:
    asked = Asked(**json.loads(Path(sys.argv[1]).read_text()))
    found = measure_rank(asked)
    if os.environ.get("RANK", "0") == "0":
        Path(asked.out).write_text(json.dumps(asdict(asked) | {"found": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
