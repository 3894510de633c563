"""A language model from documents to weights against transformers' Trainer: `python benchmarks/mlm_end_to_end.py`

Both train the same network (BERT-base, GPT-2), 8 rows of 128 tokens a step, on the demo's speeches, with a WordPiece
vocabulary of them, filled up to BERT's 30,522 entries, AdamW, dropout .1 and the precision given.
Trainer as its run_mlm.py and run_clm.py have it: texts joined end to end and cut into blocks,
DataCollatorForLanguageModeling. Ours by the driver's own loop over shards, without evaluation. Each run is a process of
its own, in turn; the first steps are left out. Printed are medians over rounds:

    tokens/s    real tokens that pass the network in a second of a step (padding apart)
    memory      the process at its peak, and what of it is beyond the bytes of weights, gradients and Adam's two means

and the padding of rows packed as launch/recipes/cpu/mlm.yaml and causal_lm.yaml do. Rows go to
benchmarks/results/mlm_end_to_end_MACHINE.csv. Exit status 1 where an aim is missed: 1.3 for masked, 1.2 for causal.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, device_name, write_rows
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bigssl.cli.main import main as bigssl
from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.data.loading.loader import make_loader
from bigssl.engine import loop, zero
from bigssl.engine.plan import preflight
from bigssl.objectives.base import config_union
from bigssl.report.environment import installed
from bigssl.report.metrics import read_metrics

ROOT = Path(__file__).parents[1]
SHARDS = ROOT / "bigssl" / "demo" / "text" / "train"
ROWS, LENGTH, VOCABULARY, LEFT_OUT = 8, 128, 30_522, 3
AIMS = {"mlm": 1.3, "causal_lm": 1.2}
MEMORY, WASTE = 0.7, 0.02
NETWORKS = {"mlm": (BertConfig, BertForMaskedLM), "causal_lm": (GPT2Config, GPT2LMHeadModel)}
TASKS = {"mlm": {"name": "mlm"}, "causal_lm": {"name": "causal_lm", "longest": 700}}
Row = dict[str, Any]


def recipe_of(task: str, precision: str, tokenizer: str, out: str, steps: int, recompute: bool = False) -> Recipe:
    kind = {"mlm": "bert", "causal_lm": "gpt2"}[task]
    text = {
        "name": "peer", "out": out, "steps": steps, "precision": precision, "log_every": 1,
        "objective": TASKS[task] | {"source": "text"}, "batch": {"size": ROWS}, "checkpoint": {"every": 100_000},
        "backbones": {"text": {"type": kind, "tokenizer": tokenizer, "length": LENGTH,
                               "activation_checkpointing": recompute}},
        "data": {"workers": 1, "sources": {"text": {"url": str(SHARDS)}}},
        "optim": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01}, "zero": {"stage": 0},
    }  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(text, file)  # which is yaml as well
        file.flush()
        return load_recipe(Path(file.name), [], recipe_model(config_union()))


def ours(task: str, precision: str, tokenizer: str, steps: int, recompute: bool = False) -> Row:
    zero.start()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        recipe = recipe_of(task, precision, tokenizer, f"{folder}/run", steps, recompute)
        plan = preflight.plan(recipe, 1)
        weights = sum(each.numel() for each in plan.objective.parameters())
        loop.train(recipe, plan, torch.device("cpu"), None)
        rows = read_metrics(recipe.folder)[LEFT_OUT:]
    seconds = [ROWS / row["speed/samples_per_s"] for row in rows]
    tokens = sum(ROWS * LENGTH * (1 - row["stats/padding"]) for row in rows)
    zero.stop()
    return {"tokens/s": tokens / sum(seconds), "weights": weights, "loss": rows[-1]["loss"]}


class Times(TrainerCallback):  # type: ignore[misc]
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def documents() -> Iterator[str]:
    for path in sorted(SHARDS.glob("*.tar.gz")):
        with tarfile.open(path) as tar:
            for each in tar:
                if each.name.endswith(".txt") and (file := tar.extractfile(each)):
                    yield file.read().decode()


def blocks(tokenizer: BertTokenizerFast) -> list[dict[str, list[int]]]:
    """run_mlm.py's `group_texts`."""
    joined = [token for text in documents() for token in tokenizer(text, verbose=False)["input_ids"]]
    ends = range(LENGTH, len(joined) + 1, LENGTH)
    return [{"input_ids": joined[end - LENGTH : end], "attention_mask": [1] * LENGTH} for end in ends]


def theirs(task: str, precision: str, tokenizer: str, steps: int) -> Row:
    tokens, times = BertTokenizerFast(tokenizer_file=tokenizer), Times()
    config, network = NETWORKS[task]
    torch.manual_seed(0)
    model = network(config(vocab_size=len(tokens), max_position_embeddings=LENGTH))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=ROWS, learning_rate=1e-4, weight_decay=0.01,
            use_cpu=True, bf16=precision == "bf16", report_to=[], logging_steps=1, save_strategy="no",
            dataloader_num_workers=1, disable_tqdm=True,
        )  # fmt: skip
        collator = DataCollatorForLanguageModeling(tokens, mlm=task == "mlm", mlm_probability=0.15)
        trainer = Trainer(model, arguments, collator, blocks(tokens), callbacks=[times])
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    seconds = times.ends[-1] - times.ends[LEFT_OUT - 1]
    return {
        "tokens/s": ROWS * LENGTH * (steps - LEFT_OUT) / seconds,
        "weights": sum(each.numel() for each in model.parameters()),
        "loss": trainer.state.log_history[-2]["loss"],
    }


def peak() -> int:
    """Bytes of this process at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


CONTENDERS = {"trainer": theirs, "ours": ours, "ours, recomputing": partial(ours, recompute=True)}


def run(name: str, task: str, precision: str, tokenizer: str, steps: int) -> Row:
    """One contender in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--tasks", task, "--precisions", precision, "--steps",
               str(steps), "--tokenizer", tokenizer]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def waste(recipe: str) -> float:
    """Padding among the tokens of the rows that a recipe makes of the demo's speeches, over 50 steps."""
    changes = ["steps=50", "probe=null", "evaluate=null"]
    os.chdir(ROOT)  # as recipes want it
    made = load_recipe(ROOT / "launch/recipes/cpu" / recipe, changes, recipe_model(config_union()))
    plan = preflight.plan(made, 1)
    loader = make_loader(
        plan.streams, plan.sizes, plan.objective.prepare, plan.objective.assemble, seed=made.seed, rank=0, world=1,
        accum=1, workers=1, start_step=0, stop_step=50, device_pin=False,
    )  # fmt: skip
    empty = total = 0
    for batch in loader:
        size = batch.data["input_ids"].numel()
        total, empty = total + size, empty + size - sum(int((group >= 0).sum()) for group in batch.data["groups"])
    return empty / total


def fill_up(path: Path) -> None:
    """Entries that no text has, as BERT's vocabulary has some, up to as many as it has."""
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"[unused{number}]": number for number in range(len(vocabulary), VOCABULARY)}
    path.write_text(json.dumps(tokenizer))


def compare(task: str, precision: str, tokenizer: str, steps: int, rounds: int) -> list[Row]:
    """A row of each contender."""
    found: dict[str, list[Row]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, rows in found.items():
            rows.append(run(name, task, precision, tokenizer, steps))
            print(task, precision, name, {k: round(v, 3) for k, v in rows[-1].items()}, file=sys.stderr, flush=True)
    rows = []
    for name, all_of in found.items():
        middle = {key: statistics.median(each[key] for each in all_of) for key in all_of[0]}
        whole, imports = int(middle["peak"]), int(middle["imports"])
        state = 16 * int(middle["weights"])
        rows.append({"what": f"{task} {precision}", "contender": name, "tokens/s": round(middle["tokens/s"], 1),
                     "peak MiB": whole >> 20, "imports MiB": imports >> 20,
                     "peak less imports and state MiB": (whole - imports - state) >> 20,
                     "weights": middle["weights"], "last loss": round(middle["loss"], 3)})  # fmt: skip
    return rows


def verdict(rows: list[Row], task: str) -> bool:
    """Prints each of ours beside Trainer; whether one of them reaches both aims."""
    reached = False
    for mine, peer in ((row, rows[0]) for row in rows[1:]):
        speed = mine["tokens/s"] / peer["tokens/s"]
        whole, rest = (mine[key] / peer[key] for key in ("peak MiB", "peak less imports and state MiB"))
        print(f"{mine['what']}, {mine['contender']}: tokens/s {mine['tokens/s']:.0f} to {peer['tokens/s']:.0f}: "
              f"{speed:.2f} (aim {AIMS[task]}); peak {mine['peak MiB']} to {peer['peak MiB']} MiB: {whole:.2f} (aim "
              f"{MEMORY}), beyond imports and state {rest:.2f}", flush=True)  # fmt: skip
        reached |= speed >= AIMS[task] and whole <= MEMORY
    return reached


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=["mlm", "causal_lm"], choices=list(AIMS))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=12, help=f"of a run, the first {LEFT_OUT} of which do not count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        imports = peak()
        row = CONTENDERS[options.one](options.tasks[0], options.precisions[0], options.tokenizer, options.steps)
        print(json.dumps(row | {"peak": peak(), "imports": imports}))
        return 0
    rows, good = list[Row](), True
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = f"{folder}/tokenizer.json"
        bigssl(["tokenizer", "train", str(SHARDS), tokenizer, "--vocab-size", str(VOCABULARY)])
        fill_up(Path(tokenizer))
        for task in options.tasks:
            for precision in options.precisions:
                rows += (found := compare(task, precision, tokenizer, options.steps, options.rounds))
                good &= verdict(found, task)
    for recipe in ("mlm.yaml", "causal_lm.yaml"):
        share = waste(recipe)
        print(f"padding of {recipe}: {100 * share:.2f} % (aim {100 * WASTE:.0f} %)")
        rows.append(dict.fromkeys(rows[0], "") | {"what": f"padding of {recipe}", "tokens/s": round(share, 4)})
        good &= share <= WASTE
    versions = {f"{k} version": v for k, v in installed()["packages"].items()}
    common = {"rounds": options.rounds, "device": device_name(torch.device("cpu"))} | versions
    machine = f"{'-'.join(device_name(torch.device('cpu')).split()[:2])}-x{torch.get_num_threads()}"
    write_rows(RESULTS / f"mlm_end_to_end_{machine}.csv", [row | common for row in rows])
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
