"""Does `bigssl plan` say how much memory a GPU really takes? `python benchmarks/plan_memory.py [RECIPE.yaml ...]`

Without a recipe: BERT-base on masked words (512 tokens), ResNet-50 on SimCLR and ViT-B on MAE (224 pixels), in bf16.
Each is trained for a few steps of made-up samples, on one GPU at each ZeRO stage (3+ is stage 3 with weights and
optimizer on the host) and with each micro-batch, in a process of its own, through the engine of a run but not its
loader. Beside the plan's bytes stand the allocator's: the most while networks are made (built), in a forward and
backward pass (pass) and in the optimizer's step (step), what stays between two steps (rest), and what the allocator
took from the card (reserved). `measured / planned` above 1: the plan promised too little.

Rows go to benchmarks/results/plan_memory_MACHINE.csv. Exit status 1 where more was taken than planned + 10 %, or a
cell failed; 2 without a GPU. `--rehearse` goes through tiny networks wherever it runs, and writes nothing. A cell takes
some 20 seconds, most of them to start (`--jobs 4`: side by side, where they fit on the card together).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
import yaml
from measure import RESULTS, device_name, write_rows

from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.data.loading.collate import collate
from bigssl.data.loading.loader import SEEDS, Batch
from bigssl.data.order.order import as_it_is
from bigssl.engine import zero
from bigssl.engine.launcher import free_port
from bigssl.engine.optim import build_optimizer
from bigssl.engine.plan.activations import OnPaper, everything_sample
from bigssl.engine.plan.memory import memory
from bigssl.engine.plan.preflight import batch_sizes, build_networks
from bigssl.engine.stepping.passes import EachPass
from bigssl.engine.teaching import teach
from bigssl.nets.build import postponed
from bigssl.nets.progress import Progress
from bigssl.objectives.base import config_union
from bigssl.transfer.discovery import evaluation_union

MIB, SPARE, KINDS = 2**20, 1.1, 16  # KINDS: different samples of a batch
HOST = "{device: cpu}"
STAGES = {
    "0": ["zero.stage=0"],
    "1": ["zero.stage=1"],
    "2": ["zero.stage=2"],
    "3": ["zero.stage=3"],
    "3+": ["zero.stage=3", f"zero.options={{offload_optimizer: {HOST}, offload_param: {HOST}}}"],
}
TOKENIZER = "bigssl/demo/tokenizer.json"
BERT = {"type": "bert", "tokenizer": TOKENIZER, "length": 512, "config": {"vocab_size": 30_522}}
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {  # task, backbones, micro-batches
    "bert-base-mlm": ({"name": "mlm", "source": "made_up"}, {"text": BERT}, [8, 32]),
    "resnet-50-simclr": ({"name": "simclr", "source": "made_up", "hidden": 2048, "dim": 128},
                         {"image": {"type": "resnet-50", "size": 224}}, [32, 128]),
    "vit-base-mae": ({"name": "mae", "source": "made_up"}, {"image": {"type": "vit-base", "size": 224}}, [32, 128]),
}  # fmt: skip
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
TINY: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    "tiny-mlm": ({"name": "mlm", "source": "made_up"}, {"text": BERT | {"length": 32, "config": SMALL}}, [4]),
    "tiny-mae": (
        {"name": "mae", "source": "made_up", "decoder_dim": 32, "decoder_layers": 1, "decoder_heads": 2},
        {"image": {"type": "vit", "size": 32, "config": SMALL | {"patch_size": 8}}}, [4],
    ),
}  # fmt: skip


def recipe_file(folder: Path, name: str, task: dict[str, Any], backbones: dict[str, Any]) -> Path:
    """A recipe over data that are not there: the engine is given batches."""
    values = {"name": name, "steps": 100, "objective": task, "backbones": backbones, "precision": "bf16",
              "data": {"sources": {"made_up": {"url": "made-up"}}}, "batch": {"size": 1}}  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def made_batches(recipe: Recipe, paper: OnPaper, objective: Any, micro: int) -> Iterator[Batch]:
    """The same batch again and again, on the host, of `micro` samples of each source."""
    rng = np.random.default_rng(0)
    parts = {}
    for source in batch_sizes(recipe, objective):
        sample = everything_sample(source, paper.towers.values())
        kinds = [objective.prepare(sample, rng, lambda _, use=as_it_is, sample=sample: use(sample))
                 for _ in range(min(micro, KINDS))]  # fmt: skip
        parts[source] = collate([kinds[n % len(kinds)] for n in range(micro)], source)
        parts[source][SEEDS] = torch.arange(micro)
    batch = Batch(objective.assemble(parts), {}, [])
    while True:
        yield batch


class Peaks:
    """The most bytes that the allocator gave out in each phase; empty without CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.most: dict[str, int] = {}
        self._cuda = device.type == "cuda"

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if not self._cuda:
            yield
            return
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        yield
        torch.cuda.synchronize()
        self.most[phase] = max(self.most.get(phase, 0), torch.cuda.max_memory_allocated())

    def reserved(self) -> dict[str, int]:
        if not self._cuda:
            return {}
        return {"rest": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}


def cell(_: int, file: str, overrides: list[str], micro: int, accum: int, steps: int, port: str, out: str) -> None:
    """Measures one row, in a process of its own."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    if not torch.cuda.is_available():
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    split = [f"batch={{size: {micro * accum}, micro: {micro}, accum: {accum}}}", "evaluate=null", "probe=null"]
    recipe = load_recipe(file, [*overrides, *split], recipe_model(config_union(), evaluation_union()))
    recipe.data.sources.update({name: source.model_copy(update={"batch": None})
                                for name, source in recipe.data.sources.items()})  # fmt: skip
    zero.check_zero(recipe)
    bf16, stage = recipe.precision != "fp32", recipe.zero.stage
    paper = OnPaper(recipe)
    plan = memory(paper.objective, recipe, stage=stage, world=1, accum=accum, bf16=bf16)
    kept = paper.activations(dict.fromkeys(batch_sizes(recipe, paper.objective), micro), bf16=bf16)
    planned = max(sum(plan.device.values()) + kept.bytes + kept.batch, plan.construction)
    device = zero.start()
    peaks, begin = Peaks(device), time.perf_counter()
    torch.manual_seed(0)
    with peaks("built"):
        with postponed(main=True) if stage == 3 else nullcontext():
            objective, _towers = build_networks(recipe)
        if stage < 3:
            objective.to(device)
        optimizer = build_optimizer(objective, recipe.optim)
        engine = zero.Engine(objective, optimizer, recipe, micro=micro, accum=accum, bf16=bf16)
    passes, batches = EachPass(engine), made_batches(recipe, paper, objective, micro)
    for step in range(steps):
        begin, at = time.perf_counter(), Progress(step, recipe.steps)
        for _ in range(accum):
            with peaks("pass"):
                value, _losses = passes(next(batches).to(device).data, at)
                engine.backward(value)
            with peaks("step"):
                engine.step()
                teach(objective.teachers(), at)
            del value, _losses
    row = {"planned": planned, "activations": kept.bytes + kept.batch, "planned_built": plan.construction,
           **peaks.most, **peaks.reserved(), "ms": (time.perf_counter() - begin) * 1e3,
           "unknown": "; ".join([*kept.unknown, *kept.partly])}  # fmt: skip
    torch.save(row, out)
    zero.stop()


def measured(name: str, file: Path, label: str, micro: int, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The row of a cell; without numbers where it failed."""
    out = folder / f"{name}-{label}-{micro}.pt"
    arguments = (str(file), [*given.overrides, *STAGES[label]], micro, given.accum, given.steps, free_port(), str(out))
    problem = ""
    try:
        mp.spawn(cell, arguments, nprocs=1)
    except Exception as error:  # out of memory among others: a result
        problem = str(error).strip().splitlines()[-1][:160]
    found = torch.load(out) if out.exists() else {}
    sizes = {key: round(value / MIB, 1) for key, value in found.items() if key not in ("ms", "unknown")}
    most = max((sizes[phase] for phase in ("built", "pass", "step") if phase in sizes), default=None)
    ratio = round(most / sizes["planned"], 3) if most else None
    columns = ("planned", "activations", "planned_built", "built", "pass", "step", "rest", "reserved")
    row = {"network": name, "stage": label, "micro": micro, "accum": given.accum}
    row |= {f"{key}_mib": sizes.get(key) for key in columns} | {"measured_mib": most, "measured / planned": ratio}
    row |= {"ms_last_step": round(found["ms"], 1) if found else None, "not_counted": found.get("unknown", ""),
            "failed": problem, "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            "versions": f"torch {torch.__version__}, deepspeed {zero.deepspeed.__version__}"}  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in row.items() if value not in (None, "", [])), flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=Path, help="recipes to measure in place of the three networks")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--micro", nargs="+", type=int, help="samples of a pass; else those of each network, or 8")
    parser.add_argument("--accum", type=int, default=1, help="passes a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time (%(default)s)")
    parser.add_argument("--overrides", nargs="+", default=[], help="fields of recipes, a.b=c")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args()
    if not given.rehearse and not torch.cuda.is_available():
        print("plan_memory: needs a CUDA GPU: on a CPU there is no allocator that says how much was taken (--rehearse "
              "goes through the motions)", file=sys.stderr)  # fmt: skip
        return 2
    with tempfile.TemporaryDirectory(prefix="plan-memory-") as name:
        folder = Path(name)
        cells = [(file.stem, file, given.micro or [8]) for file in given.recipes]
        for network, (task, backbones, micros) in ({} if cells else TINY if given.rehearse else NETWORKS).items():
            cells.append((network, recipe_file(folder, network, task, backbones), given.micro or micros))
        todo = [(network, file, label, micro) for network, file, micros in cells for micro in micros
                for label in given.stages]  # fmt: skip
        with ThreadPoolExecutor(given.jobs) as pool:
            rows = list(pool.map(lambda each: partial(measured, folder=folder, given=given)(*each), todo))
    if not given.rehearse:
        write_rows(given.out / f"plan_memory_{device_name(torch.device('cuda')).replace(' ', '-')}.csv", rows)
    return int(any(row["failed"] or (row["measured / planned"] or 0) > SPARE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
