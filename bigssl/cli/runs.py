"""`bigssl evaluate|report`: what a run folder is worth, and how it looks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bigssl.cli.recipes import model
from bigssl.config.changes import covers
from bigssl.config.errors import ConfigError, say
from bigssl.config.evaluate import EXAMPLE
from bigssl.config.places import EXPORT, seen_from
from bigssl.config.recipe import Recipe, dump_recipe, load_recipe
from bigssl.data.loading import process
from bigssl.files import write_atomic


def evaluate(run_folder: Path, /, *overrides: str, device: str = "cpu", out: Path | None = None) -> None:
    """With overrides, or --out, the scorecard, its recipe and a report are written beside, never over the run's.

    Args:
        run_folder: for example runs/demo
        overrides: fields to change, evaluate.NAME.FIELD=VALUE or seed=N
        device: cpu, cuda, cuda:1 ...
        out: a new or empty folder for what is written (default with overrides: RUN_FOLDER/evaluations/NNN)
    """
    from bigssl.report.html import write_report
    from bigssl.transfer.scorecard import format_table, score

    _check_device(device)
    _refuse_other_overrides(overrides)
    recipe = _recipe_of(run_folder, overrides)
    process.use_data_settings(recipe.data)
    if not recipe.evaluate:
        raise ConfigError(f"{run_folder}/config.yaml: evaluate: missing; add {{NAME: {EXAMPLE}}} and run again, or "
                          f"evaluate.NAME={{task: ...}} here")  # fmt: skip
    _refuse_trained_on(recipe)
    _check_evaluations(run_folder, recipe)
    made = _made(run_folder, overrides)
    with _beside(run_folder, out, overrides) as there:
        print(format_table(score(run_folder, recipe.evaluate, seed=recipe.seed, device=device, made=made, out=there)))
        if there is not None:
            write_atomic(there / "config.yaml", dump_recipe(recipe).encode())
        print(f"report: {write_report(run_folder, there)}")


def _refuse_other_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        field = override.partition("=")[0]
        if field != "seed" and not covers("evaluate", field):
            raise ConfigError(
                f"override {override!r}: the run is trained; allowed: evaluate.NAME.FIELD=VALUE and seed=N"
            )


def _made(run_folder: Path, overrides: Sequence[str]) -> str:
    """Which recipe makes a scorecard, and of what, in a sentence."""
    from bigssl.objectives.exported import about_export

    changed = f" and {' '.join(overrides)}" if overrides else ""
    try:
        of = f"of the export after {about_export(run_folder / EXPORT)['steps']} steps"
    except (OSError, ValueError):  # of an earlier bigssl
        of = "of the export"
    return f"Made with {run_folder}/config.yaml{changed}, {of}."


@contextmanager
def _beside(run_folder: Path, out: Path | None, overrides: Sequence[str]) -> Iterator[Path | None]:
    """The folder, made here, that is written to beside the run folder; None for the run folder itself."""
    if out is None and not overrides:
        yield None
        return
    if out is None:
        out = _next_number(run_folder / "evaluations")
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


def _check_evaluations(run_folder: Path, recipe: Recipe) -> None:
    """What `bigssl config check` finds wrong with the section, for the networks that were exported: tokenizers and
    pretrained networks of the recipe may be gone from here, as may exported ones that no evaluation asks for."""
    from bigssl.engine.plan.activations import Trial
    from bigssl.engine.plan.evaluation import check_evaluation
    from bigssl.engine.plan.preflight import evaluated_towers
    from bigssl.objectives.base import exported_heads

    folder = run_folder / EXPORT
    if not folder.is_dir():
        raise ConfigError(f"{run_folder}: no export in it; it is written at the end of a run: run the same training "
                          f"command again")  # fmt: skip
    backbones = {}
    for name, backbone in recipe.backbones.items():
        if not (folder / name).is_dir():
            backbones[name] = backbone
            continue
        pretrained = {} if backbone.init_from is None else {"init_from": str(folder / name)}
        tokenizer = {} if backbone.tokenizer is None else {"tokenizer": str(folder / name)}
        backbones[name] = backbone.model_copy(update=pretrained | tokenizer)
    recipe = recipe.model_copy(update={"backbones": backbones, "start_from": None, "probe": None})
    networks = Trial(recipe)
    towers = evaluated_towers(networks.objective, networks.towers)
    there = {name: tower for name, tower in towers.items() if (folder / name).is_dir()}
    check_evaluation(recipe, there, exported_heads(networks.objective))


def report(run_folder: Path, /) -> None:
    """
    Args:
        run_folder: for example runs/demo
    """
    from bigssl.report.html import write_report

    _recipe_of(run_folder)
    print(f"report: {write_report(run_folder)}")


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        why = str(error).partition("\n")[0]
        raise ConfigError(f"--device: {name!r} is no device of this machine ({why})") from None


def _refuse_trained_on(recipe: Recipe) -> None:
    """The section may have been edited since the run began. Shards that are gone from here cannot be compared."""
    from bigssl.engine.plan.evaluation import refuse_seen
    from bigssl.engine.plan.sources import source_indexes

    indexes = {}
    for name, source in recipe.data.sources.items():
        try:
            indexes[name] = source_indexes(source, f"data.sources.{name}").values()
        except ConfigError as error:
            say(error, "not checked whether what is judged was trained on: ")
    refuse_seen(recipe.model_copy(update={"probe": None}), indexes)


def _recipe_of(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    if not folder.exists():
        raise ConfigError(f"{folder}: no such folder{seen_from(folder)}; run folders are under runs/")
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: not a run folder (no config.yaml in it); run folders are under runs/")
    return load_recipe(folder / "config.yaml", list(overrides), model())
