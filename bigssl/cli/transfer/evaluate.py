"""`bigssl evaluate`: what trained networks are worth."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import Any

from bigssl import exits
from bigssl.cli.transfer.judged import Judgeable
from bigssl.cli.transfer.serving import BRIEFLY
from bigssl.cli.transfer.wishes import ALL, Wish, wish_of
from bigssl.config.changes import covers
from bigssl.config.errors import ConfigError
from bigssl.config.evaluate import EXAMPLE, Evaluation
from bigssl.data.loading import process
from bigssl.files import write_atomic


def evaluate(
    path: Path, /, *overrides: str, task: str = "", train: str | None = None, test: str | None = None,
    label: str | None = None, backbone: str | None = None, device: str = "cpu", out: Path | None = None,
) -> int:  # fmt: skip
    """Without --task: the evaluations of a run's recipe, again; with overrides, or --out, the scorecard, its recipe and
    a report are written beside, never over the run's.

    With --task: these evaluations (docs/transfer.md lists them) of a run, of an export or of the folder of a network,
    on any shards, each of every network that it fits. Options are fields of their sections, e.g. k=5, linear.seeds=1.

    Args:
        path: a run (runs/demo), an export, or the folder of a network as transformers writes it
        overrides: fields to change: FIELD=VALUE or TASK.FIELD=VALUE with --task, else evaluate.NAME.FIELD=VALUE; seed=N
        task: TASK, several with commas between, or all: what these networks and data can serve
        train: shards that an evaluation learns from (of a run: those of its recipe's evaluations)
        test: shards that are judged (of a run: those of its recipe's evaluations)
        label: metadata field that is predicted (default: label)
        backbone: network that is judged (default: each that fits)
        device: cpu, cuda, cuda:1 ...
        out: a new or empty folder for what is written (default, but for a run as it is: evaluations/NNN in the run
            folder, or here)
    """
    _check_device(device)
    words = _words(task, {"train": train, "test": test, "label": label, "backbone": backbone}, overrides)
    if task:
        wish = wish_of(task, overrides, train=train, test=test, label=label, backbone=backbone)
        asked = _by_task(Judgeable.at(path), wish, words)
    else:
        _refuse_without_task({"train": train, "test": test, "label": label, "backbone": backbone}, overrides)
        asked = _by_recipe(Judgeable.at(path, overrides), overrides)
    beside = _beside(asked.judged, out, always=bool(task or overrides))
    return _scored(asked, beside, device)


@dataclass(frozen=True)
class Evaluating:
    """What is evaluated. unserved: by task, why not. again: the command, but for the path."""

    judged: Judgeable
    evaluate: Mapping[str, Evaluation]
    made: str
    seed: int
    unserved: Mapping[str, str]


def _words(task: str, flags: Mapping[str, str | None], overrides: Sequence[str]) -> str:
    """The command line behind the path, as it can be typed again."""
    given = [word for name, value in {"task": task or None, **flags}.items() if value is not None
             for word in (f"--{name}", value)]  # fmt: skip
    return join([*given, *overrides])


def _by_recipe(judged: Judgeable, overrides: Sequence[str]) -> Evaluating:
    recipe = judged.recipe
    if recipe is None or not judged.is_run:
        raise ConfigError(f"--task: missing; {judged.path} has no recipe that says what to evaluate: bigssl evaluate "
                          f"{judged.path} --task {ALL} --train SHARDS --test SHARDS")  # fmt: skip
    if not recipe.evaluate:
        raise ConfigError(f"{judged.path}/config.yaml: evaluate: missing; add {{NAME: {EXAMPLE}}} and run again, or "
                          f"evaluate.NAME={{task: ...}} or --task here")  # fmt: skip
    judged.refuse_seen(recipe.evaluate)
    judged.check(recipe.evaluate)
    changed = f" and {' '.join(overrides)}" if overrides else ""
    made = f"Made with {judged.path}/config.yaml{changed}, {judged.described}."
    return Evaluating(judged, recipe.evaluate, made, recipe.seed, {})


def _by_task(judged: Judgeable, wish: Wish, words: str) -> Evaluating:
    sections, unserved = judged.serve(wish)
    try:
        judged.refuse_seen(sections)
    except ConfigError as error:
        raise ConfigError(re.sub(r"evaluate\.[\w-]+\.queries: ", "--test: ", str(error))) from None
    made = f"Made by `bigssl evaluate {judged.path} {words}`, {judged.described}."
    made += f" {BRIEFLY}" if wish.all else ""
    seed = wish.seed if wish.seed is not None else judged.recipe.seed if judged.recipe is not None else 0
    return Evaluating(judged, sections, " ".join([made, *judged.unknown]), seed, unserved)


def _scored(asked: Evaluating, beside: Any, device: str) -> int:
    from bigssl.report.html import write_report
    from bigssl.transfer.scorecard import format_table, score

    judged = asked.judged
    _tell_progress()
    if judged.recipe is not None:
        process.use_data_settings(judged.recipe.data)
    with beside as there:
        card = score(judged.path, asked.evaluate, seed=asked.seed, device=device, made=asked.made, out=there,
                     steps=judged.steps)  # fmt: skip
        print(format_table(card))
        if there is not None:
            write_atomic(there / "config.yaml", judged.recipe_with(asked.evaluate, asked.seed).encode())
        for name, why in asked.unserved.items():
            print(f"not served: {name}: {'; '.join(why.splitlines())}")
        print(f"report: {write_report(judged.path, there)}")
    for name, why in card["failed"].items():
        print(f"bigssl: {name} failed: {why}", file=sys.stderr)
    return exits.FAILED if card["failed"] else exits.DONE


def _tell_progress() -> None:
    """On stderr, which evaluation and which of its trials begins."""
    log = logging.getLogger("bigssl.transfer")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)


def _refuse_without_task(flags: Mapping[str, str | None], overrides: Sequence[str]) -> None:
    for name, value in flags.items():
        if value is not None:
            raise ConfigError(f"--{name} {value}: --task is missing, which says what for; allowed: --task TASK or "
                              f"--task {ALL} beside it, or evaluate.NAME.FIELD=VALUE for an evaluation of the "
                              "recipe")  # fmt: skip
    for override in overrides:
        field = override.partition("=")[0]
        if field != "seed" and not covers("evaluate", field):
            raise ConfigError(
                f"override {override!r}: the run is trained; allowed: evaluate.NAME.FIELD=VALUE and seed=N, or "
                "--task and fields of its section"
            )


@contextmanager
def _beside(judged: Judgeable, out: Path | None, *, always: bool) -> Iterator[Path | None]:
    """The folder, made here, that is written to; None for the run folder itself."""
    if out is None and judged.is_run and not always:
        yield None
        return
    if out is None:
        out = _next_number(judged.path / "evaluations" if judged.is_run else Path("evaluations"))
    elif os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        holds = f"holds {min(path.name for path in out.iterdir())}" if out.is_dir() else "is no folder"
        raise ConfigError(f"--out: value {str(out)!r}: {holds}; allowed: a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield out
    finally:
        with suppress(OSError):  # it holds what was written
            out.rmdir()


def _next_number(folder: Path) -> Path:
    """A new folder `folder/NNN`, of this process alone."""
    number = max((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), default=0)
    while True:
        number += 1
        path = folder / f"{number:03d}"
        with suppress(FileExistsError):  # by another evaluation
            path.mkdir(parents=True)
            return path


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        why = str(error).partition("\n")[0]
        raise ConfigError(f"--device: {name!r} is no device of this machine ({why})") from None
