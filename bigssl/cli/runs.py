"""`bigssl evaluate|report`: what a run folder is worth, and how it looks."""

from __future__ import annotations

from pathlib import Path

from bigssl.cli.recipes import model
from bigssl.config.errors import ConfigError, say
from bigssl.config.evaluate import EXAMPLE
from bigssl.config.recipe import Recipe, load_recipe
from bigssl.data.loading import process


def evaluate(run_folder: Path, /, *, device: str = "cpu") -> None:
    """
    Args:
        run_folder: for example runs/demo
        device: cpu, cuda, cuda:1 ...
    """
    from bigssl.report.html import write_report
    from bigssl.transfer.scorecard import format_table, score

    _check_device(device)
    recipe = _recipe_of(run_folder)
    process.use_data_settings(recipe.data)
    if recipe.evaluate is None:
        raise ConfigError(f"{run_folder}/config.yaml: evaluate: missing; add {{NAME: {EXAMPLE}}} and run again")
    _refuse_trained_on(recipe)
    print(format_table(score(run_folder, recipe.evaluate, seed=recipe.seed, device=device)))
    print(f"report: {write_report(run_folder)}")


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


def _recipe_of(folder: Path) -> Recipe:
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: not a run folder (no config.yaml in it); run folders are under runs/")
    return load_recipe(folder / "config.yaml", [], model())
