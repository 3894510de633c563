"""What a rank sends in a step, beside the least that the step needs: `python benchmarks/traffic.py [TASK ...]`

Every pretext task's preset (tests/objectives), at each ZeRO stage, on two gloo ranks, in fp32, with one pass a step and
with two: all collectives of the third step are counted (`wire.py`, which states the ring volumes), and compared with

    stage 0    an all-reduce of the gradients, once a step
    stage 1    once a step, each slice of the gradients reduced to its owner, and an all-gather of the weights
    stage 2    the same, but gradients once a pass
    stage 3    once a pass, an all-gather of the weights and a reduce-scatter of the gradients; weights below
               stage3_param_persistence_threshold once a step; once more a step what a teacher follows of the others
               (and what a constraint changes: gathered, and what rank 0 makes of it broadcast, which is one too many)
    BatchNorm  forward, mean, second moment and count of each channel; backward, two sums of its gradients (torch's
               SyncBatchNorm, on GPUs, gathers the first: of W ranks W / 2 times as much)
    losses     what LOSSES says, where a task stands there; of others the count stands for it

(Weights stay whole from the forward to the backward pass of stage 3 up to stage3_max_reuse_distance, a thousand
million; of larger networks they are gathered twice.) Prints a line a cell, puts rows into
benchmarks/results/traffic.csv, and ends with 1 if a cell sends more; a quarter of an hour for all. In bf16 it is the
same: weights and gradients are fp32.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests" / "objectives"))
from contract_runs import PLACES, SIZE, Cell, at_cell, preset_recipe, validated  # noqa: E402
from measure import RESULTS, write_rows  # noqa: E402
from wire import Wire, counted  # noqa: E402

from bigssl import distributed  # noqa: E402
from bigssl.config.recipe import BackboneConfig  # noqa: E402
from bigssl.engine import loop, zero  # noqa: E402
from bigssl.engine.held import let_go  # noqa: E402
from bigssl.engine.optim import parameter_groups  # noqa: E402
from bigssl.engine.plan import preflight  # noqa: E402
from bigssl.nets.norm import GlobalBatchNorm  # noqa: E402
from bigssl.objectives.base import Objective, discover  # noqa: E402

FP32, FP64 = 4, 8
FEW = {"get_grad_norm_direct", "engine.clipping: clip_gradients", "agreement: __exit__",
       "engine.stepping.passes: begin"}  # fmt: skip
"""Functions that pass a few numbers: norms of the gradient, which are asked for twice, a check of the kernels, and how
much the passes of a step have of what a loss is the mean over."""
Row = dict[str, Any]


def all_reduce(size: float, world: int) -> Fraction:
    return Fraction(2 * (world - 1), world) * Fraction(size)


def all_gather(own: float, world: int) -> Fraction:
    """own: bytes of one rank."""
    return (world - 1) * Fraction(own)


def spread(width: int, world: int) -> Fraction:
    """`distributed.spread`: two moments of each dimension and a count."""
    return all_reduce((2 * width + 1) * FP64, world)


def _contrast(task: Any, rows: int, world: int, numbers: int) -> Fraction:
    """Both embeddings of a sample to all, a few numbers for each in return, and a sum."""
    return all_gather(rows * (2 * task.config.dim + numbers) * FP32, world) + all_reduce(FP32, world)


def _simclr(task: Any, rows: int, world: int) -> Fraction:
    return _contrast(task, rows, world, 4) + spread(task.config.dim, world)


def _clip(task: Any, rows: int, world: int) -> Fraction:
    """And the gradient of the scale."""
    return _contrast(task, rows, world, 3) + all_reduce(FP32, world) + 2 * spread(task.config.dim, world)


def _byol(task: Any, rows: int, world: int) -> Fraction:
    """Two lines of the best constant: the sum of the targets, and how many."""
    return 2 * all_reduce((task.config.dim + 1) * FP64, world) + spread(task.config.dim, world)


def _mae(task: Any, rows: int, world: int) -> Fraction:
    return all_reduce(2 * FP32, world) + spread(task.backbone.dim, world)


def _tokens(task: Any, rows: int, world: int) -> Fraction:
    """How often each token was the answer."""
    return all_reduce(len(task.frequencies.counts) * FP32, world)


def _series_contrast(task: Any, rows: int, world: int) -> Fraction:
    """The overlap's states at the finest scale to all, and as much gradient back."""
    states = rows * 2 * task.shared * task.backbone.dim * FP32
    return all_gather(states, world) * 2 + spread(task.backbone.dim, world)


LOSSES: dict[str, Callable[[Any, int, int], Fraction]] = {
    "simclr": _simclr, "clip": _clip, "byol": _byol, "mae": _mae, "mlm": _tokens, "causal_lm": _tokens,
    "series_contrast": _series_contrast,
}  # fmt: skip
"""By task: bytes that its losses and blind lines need of a pass, of (task, samples of a rank, ranks)."""


class Count(NamedTuple):
    """Of a step of a rank, bytes by purpose: counted, and the least. own: by function, of all that is bigssl's."""

    sent: dict[str, Fraction]
    least: dict[str, Fraction]
    own: dict[str, Fraction]


def weights(task: Objective, values: Row, world: int) -> Fraction:
    """Bytes of gradients and weights in a step."""
    stage, accum = values["zero"]["stage"], values["batch"].get("accum", 1)
    share = Fraction(world - 1, world) * FP32
    sizes = {id(p): getattr(p, "ds_numel", p.numel()) for p in task.parameters()}
    trained = [sizes[id(p)] for p in task.parameters() if p.requires_grad]
    if stage == 0:
        return 2 * share * sum(trained)
    if stage < 3:
        groups = parameter_groups(task, validated(values).optim)
        whole = sum(_padded(sum(p.numel() for p in group["params"]), 2 * world) for group in groups)
        return share * ((accum if stage == 2 else 1) * sum(trained) + whole)
    kept = {id(p) for p in task.parameters() if p.ds_persist}
    taught = {id(p) for teacher in task.teachers().values() for p in teacher.student.parameters()}
    changed = [sizes[id(p)] for constraint in task.constraints() for p in constraint.parameters]
    gathers = {p: (1 if p in kept else accum + (p in taught)) * _padded(n, world) for p, n in sizes.items()}
    constrained = 2 * sum(_padded(n, world) for n in changed)
    return share * (accum * sum(_padded(n, world) for n in trained) + sum(gathers.values()) + constrained)


def _padded(number: int, to: int) -> int:
    return -(-number // to) * to


class Norms:
    """Bytes of the moments of every BatchNorm, as its channels and calls have it."""

    def __init__(self, task: Objective) -> None:
        self.bytes, modules = Fraction(0), [task, *(teacher.module for teacher in task.teachers().values())]
        for norm in [m for module in modules for m in module.modules() if isinstance(m, GlobalBatchNorm)]:
            norm.register_forward_hook(self._called)

    def _called(self, norm: Any, inputs: Any, output: torch.Tensor) -> None:
        if norm.training:
            numbers = 2 * norm.num_features + 1 + 2 * norm.num_features * output.requires_grad
            self.bytes += all_reduce(numbers * FP32, distributed.world())


def count(values: Row) -> Count:
    """Of the last step of a run on this rank. Collective."""
    recipe = validated(values)
    plan = preflight.plan(recipe, preflight.announced_world())
    device, norms, update, wires = zero.start(), Norms(plan.objective), loop._Run._update, list[Wire]()

    def watched(run: Any, step: int, passes: Any) -> Any:
        norms.bytes = Fraction(0)
        with counted() as wire:
            wires.append(wire)
            return update(run, step, passes)

    with contextlib.ExitStack() as stack:
        stack.callback(let_go)
        stack.enter_context(mock.patch.object(loop._Run, "_update", watched))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        loop.train(recipe, plan, device, None)
    return _sorted(wires[-1], norms.bytes, plan, values)


def _sorted(wire: Wire, norms: Fraction, plan: preflight.Plan, values: Row) -> Count:
    task, world, accum = plan.objective, distributed.world(), plan.accum
    few = sum((sent for (_, name), sent in wire.sent.items() if name in FEW), Fraction(0))
    own = {name: Fraction(sent) for (who, name), sent in wire.sent.items() if who != "deepspeed" and name not in FEW}
    engine = sum((sent for (who, name), sent in wire.sent.items() if who == "deepspeed" and name not in FEW),
                 Fraction(0))  # fmt: skip
    losses = sum(own.values(), Fraction(0)) - norms
    name = values["objective"]["name"]
    least = accum * LOSSES[name](task, SIZE // world // accum, world) if name in LOSSES else losses
    return Count(
        {"weights": engine, "norms": norms, "losses": losses, "numbers": few},
        {"weights": weights(task, values, world), "norms": norms, "losses": least, "numbers": few},
        own,
    )


def cells(names: list[str], stages: list[int], accums: list[int]) -> list[tuple[str, Cell, int]]:
    """(task, cell, passes a step), stage 3 with all weights in slices and with DeepSpeed's threshold."""
    places = [place for place in PLACES if place[0] in stages]
    return [(name, Cell(*place, 2, "fp32"), accum) for name in names for place in places for accum in accums]


def recipe_values(name: str, cell: Cell, accum: int, section: Callable[[Any], BackboneConfig], out: str) -> Row:
    """A preset, three steps long, as `count` takes it."""
    changes = {"steps": 3, "batch": {"size": SIZE, "accum": accum}, "checkpoint": {"every": 3}}
    return at_cell(preset_recipe(name, section, out, **changes), cell)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TASK", help="default: every pretext task")
    parser.add_argument("--stage", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--accum", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--by", action="store_true", help="print what each function of bigssl sends, too")
    asked = parser.parse_args(arguments)
    from conftest import section_of  # the tests' tiny networks

    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        todo = cells(asked.names or sorted(discover()), asked.stage, asked.accum)
        runs = [recipe_values(*cell, section_of, f"{folder}/{number}") for number, cell in enumerate(todo)]
        queue = multiprocessing.get_context("fork").SimpleQueue()
        workers = _start(runs, queue)
        for name, cell, accum in todo:
            found = queue.get()
            if isinstance(found, str):
                raise SystemExit(found)
            rows += (new := _rows(name, cell, accum, found))
            _print(new, found, asked.by)
        for worker in workers:
            worker.join()
    _keep(rows)
    return int(any(row["sent"] > row["least"] for row in rows))


def _rows(name: str, cell: Cell, accum: int, found: Count) -> list[Row]:
    place = {"task": name, "stage": cell.stage, "threshold": "" if cell.persistence is None else cell.persistence}
    return [place | {"accum": accum, "of": part, "sent": float(sent), "least": float(found.least[part])}
            for part, sent in found.sent.items()]  # fmt: skip


def _keep(rows: list[Row]) -> None:
    """In place of older rows of the same cells."""
    file, key = RESULTS / "traffic.csv", itemgetter("task", "stage", "threshold", "accum", "of")
    older: list[Row] = list(csv.DictReader(file.open())) if file.exists() else []
    together = {tuple(map(str, key(row))): row for row in [*older, *rows]}
    write_rows(file, [together[place] for place in sorted(together)])


def _print(rows: list[Row], found: Count, by: bool) -> None:
    sent, least = (sum(row[key] for row in rows) for key in ("sent", "least"))
    parts = ", ".join(f"{row['of']} {row['sent']:,.0f}" + ("" if row["sent"] == row["least"] else
                      f" (least {row['least']:,.0f})") for row in rows if row["sent"])  # fmt: skip
    stage = f"{rows[0]['stage']}" + (f", threshold {rows[0]['threshold']}" if rows[0]["threshold"] != "" else "")
    print(f"{rows[0]['task']:20} ZeRO {stage:14} {rows[0]['accum']} pass(es): {sent:12,.0f} B, {sent / least:.4f} of "
          f"the least: {parts}", flush=True)  # fmt: skip
    for name, each in sorted(found.own.items()) if by else ():
        print(f"    {name}: {float(each):,.0f}", flush=True)


def _start(runs: list[Row], queue: Any) -> list[Any]:
    """Two ranks, forked: each of the runs, one after the other, and what rank 0 counted into the queue."""
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_rank, args=(rank, port, runs, queue), daemon=True) for rank in range(2)]
    for worker in workers:
        worker.start()
    return workers


def _rank(rank: int, port: int, runs: list[Row], queue: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")  # fmt: skip
    for values in runs:
        try:
            found: Count | str = count(values)
        except Exception as error:
            found = f"rank {rank}: {values['name']}, {values['zero']}: {error!r}"
        if rank == 0 or isinstance(found, str):
            queue.put(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
