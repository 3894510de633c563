"""`bigssl ...`: everything that is not a distributed run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from bigssl.config.errors import ConfigError, OneLineParser, say  # noqa: E402
from bigssl.config.evaluate import EXAMPLE  # noqa: E402
from bigssl.config.recipe import Recipe, dump_recipe, load_recipe, recipe_model  # noqa: E402
from bigssl.data.errors import DataError, redact  # noqa: E402
from bigssl.data.loading import process  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Entry of the command; returns the exit code (2: the arguments or the recipe cannot be used)."""
    options = _parse(arguments)
    try:
        return int(options.run(options) or 0)
    except (ConfigError, DataError) as error:
        say(error)
        return 2
    except BrokenPipeError:  # `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes it once more when it ends
        return 0
    except OSError as error:  # a full disk, a folder that is not writable
        say(OSError(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")))
        return 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """Overrides may stand anywhere: argparse leaves those after an option over."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    takes_overrides = "overrides" in options and all("=" in word and not word.startswith("-") for word in rest)
    if rest and not takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    from bigssl.cli import plan as plan_cli
    from bigssl.cli import shards

    parser = OneLineParser("bigssl", description="Self-supervised pretraining: data, recipes, evaluation.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    config = commands.add_parser("config", help="recipes").add_subparsers(required=True, metavar="COMMAND")
    schema = config.add_parser("schema", help="print the JSON schema of recipes, for editors")
    schema.set_defaults(run=_schema)
    check = config.add_parser("check", help="check a recipe and the files it names, without starting it")
    check.add_argument("--world", type=int, default=1, help="ranks it is meant for")
    _recipe_arguments(check, _check)
    evaluate = commands.add_parser("evaluate", help="score a trained run again: scorecard.json and report.html")
    evaluate.add_argument("run_folder", type=Path, help="for example runs/demo")
    evaluate.add_argument("--device", default="cpu", type=_device, help="cpu (default), cuda, cuda:1 ...")
    evaluate.set_defaults(run=_evaluate)
    report = commands.add_parser("report", help="write report.html of a run, also while it trains")
    report.add_argument("run_folder", type=Path)
    report.set_defaults(run=_report)
    plan_cli.add_command(commands)
    shards.add_commands(commands)
    return parser


def _device(text: str) -> str:
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        why = str(error).partition("\n")[0]
        raise argparse.ArgumentTypeError(f"{text!r} is no device of this machine ({why})") from None
    return text


def _recipe_arguments(parser: argparse.ArgumentParser, run: object) -> None:
    parser.add_argument("config", help="recipe (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c")
    parser.set_defaults(run=run)


def _model() -> type[Recipe]:
    from bigssl.objectives.base import config_union
    from bigssl.transfer.discovery import evaluation_union

    return recipe_model(config_union(), evaluation_union())


def _schema(options: argparse.Namespace) -> None:
    print(json.dumps(_model().model_json_schema(), indent=1))


def _check(options: argparse.Namespace) -> None:
    from bigssl.engine.plan import preflight

    recipe = load_recipe(options.config, options.overrides, _model())
    plan = preflight.plan(recipe, options.world)
    print(redact(dump_recipe(recipe)), end="")
    samples = {name: f"{len(stream)} samples, {plan.sizes[name]} a step" for name, stream in plan.streams.items()}
    print(f"# fits: {options.world} ranks x {plan.accum} passes x {plan.micro} samples; {samples}")


def _evaluate(options: argparse.Namespace) -> None:
    from bigssl.report.html import write_report
    from bigssl.transfer.scorecard import format_table, score

    recipe = load_recipe(_config_of(options.run_folder), [], _model())
    process.use_data_settings(recipe.data)
    if recipe.evaluate is None:
        raise ConfigError(f"{options.run_folder}/config.yaml: evaluate: missing; add {{NAME: {EXAMPLE}}} and run again")
    _refuse_trained_on(recipe)
    print(format_table(score(options.run_folder, recipe.evaluate, seed=recipe.seed, device=options.device)))
    print(f"report: {write_report(options.run_folder)}")


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


def _report(options: argparse.Namespace) -> None:
    from bigssl.report.html import write_report

    _config_of(options.run_folder)
    print(f"report: {write_report(options.run_folder)}")


def _config_of(folder: Path) -> Path:
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder}: not a run folder (no config.yaml in it); run folders are under runs/")
    return path


if __name__ == "__main__":
    sys.exit(main())
