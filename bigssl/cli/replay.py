"""`bigssl shards replay`: which samples each rank of a run trains on, step by step, without the run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import DataConfig, load_recipe, recipe_model
from bigssl.data.errors import DataError, display
from bigssl.data.loading import process
from bigssl.data.order.order import Order
from bigssl.data.order.stream import Stream
from bigssl.data.shards.index import DatasetIndex

if TYPE_CHECKING:  # torch, which loaders need, takes seconds to load, and every command reads this file
    from bigssl.data.loading.loader import MicroBatches, Prepare

DESCRIPTION = """
Prints {"step": s, "rank": r, "keys": [...]} as JSON lines, ordered by step and rank: exactly what rank r of --world
trains on in step s, and what it writes to ledger-rankN.jsonl under data.ledger=true. The keys of a step, ranks in
order, are the global batch. Steps count from 0: step s is the one that leads to the metrics of step s + 1, and
--from s is what a run does first after checkpoint step-s. With several sources, each has a line of its own, with its
name as "source". Where data.on_error is skip, samples are also prepared as the run does, so that the stand-ins of bad
ones are the same. Exit status 2 names the damage that would stop the run.
"""
ONLY_DATA = ("batch", "seed", "lanes", "window", "on_error")


def add_replay(commands: Any) -> None:
    """Adds `replay` to the subparsers of `bigssl shards`; `run` raises ConfigError and DataError."""
    parser = commands.add_parser("replay", help="the keys each rank trains on, step by step", description=DESCRIPTION)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="R", help="recipe; overrides a.b=c may follow")
    what.add_argument("--data", metavar="URL", help="a folder with index.json, a tar, or a brace pattern")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="with --config: recipe fields to change")
    parser.add_argument("--batch", type=_whole(1), metavar="B", help="with --data: samples per step over all ranks")
    parser.add_argument("--seed", type=_whole(0), metavar="S", help="with --data: seed of the order")
    parser.add_argument("--lanes", type=_whole(1), metavar="L", help="with --data: data.lanes (256)")
    parser.add_argument("--window", type=_whole(1), metavar="K", help="with --data: data.shuffle_window (1024)")
    parser.add_argument("--on-error", choices=("raise", "skip"), help="with --data: data.on_error (raise)")
    parser.add_argument("--world", type=_whole(1), default=1, metavar="W", help="ranks (%(default)s)")
    parser.add_argument(
        "--workers", type=_whole(0), default=0, metavar="K", help="loader processes, shared by the ranks (%(default)s)"
    )
    parser.add_argument("--from", dest="start", type=_whole(0), default=0, metavar="STEP", help="first step (0)")
    parser.add_argument("--steps", type=_whole(1), required=True, metavar="N", help="how many steps")
    parser.add_argument("--no-read", action="store_true", help="keys from the index alone, as if nothing were damaged")
    parser.set_defaults(run=_replay)


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return parse


def _replay(args: argparse.Namespace) -> int:
    batches = _of_recipe(args) if args.config else _of_data(args)
    try:
        for text in records(batches, args.workers, args.start, args.steps, check=not args.no_read):
            sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115 - Python flushes it once more when it ends
    return 0


def records(batches: MicroBatches, workers: int, start: int, steps: int, *, check: bool) -> Iterator[str]:
    """The lines of steps [start, start + steps) for every rank of `batches.world`, ordered by step and rank.

    The ranks share `workers` processes. check: see `StepKeys`. Bad samples are
    counted from `start` on. Raises DataError where a run that logs each step would, after the lines of that step.
    """
    from bigssl.data.loading.ledger import StepKeys, ledger_lines
    from bigssl.data.loading.loader import Loader
    from bigssl.data.loading.skipped import Tally
    from bigssl.data.loading.watchdog import Stages, Watchdog

    world, tally = batches.world, Tally(min(stream.max_errors for stream in batches.streams.values()))
    stages = Stages(workers, batches.streams)
    batches.stages = stages
    watchdog = Watchdog(stages, rank=0, workers=workers, warn=_default("watchdog"), abort=0)
    items = range(start * world, (start + steps) * world)
    loader = Loader(StepKeys(batches, check), items, workers, stages, watchdog, batches.close)
    for item, batch in zip(items, loader, strict=True):
        step, rank = divmod(item, world)
        for bad in batch.errors:
            print(f"rank {rank}: skipped: {bad.cause}", file=sys.stderr, flush=True)
        tally.add(batch.errors)
        yield ledger_lines(step, rank, batch.keys)
        if rank == world - 1 and tally.excess:
            raise DataError(tally.excess)


def _of_data(args: argparse.Namespace) -> MicroBatches:
    missing = [f"--{name}" for name in ("batch", "seed") if getattr(args, name) is None]
    if missing or args.overrides:
        wrong = f"missing: {', '.join(missing)}" if missing else f"overrides {args.overrides} are for --config"
        raise DataError(f"--data {args.data} needs --batch and --seed and takes no overrides; {wrong}")
    name = display(args.data)
    stream = Stream(
        DatasetIndex.load(args.data), seed=args.seed, lanes=args.lanes or _default("lanes"),
        window=args.window or _default("shuffle_window"), on_error=args.on_error or _default("on_error"),
        max_errors=_default("max_errors"), source=name,
    )  # fmt: skip
    stream.micro_batch(0, args.batch, 0, args.world, 0, 1)  # refuses what cannot be dealt out
    return _batches({name: stream}, {name: args.batch}, _nothing, args.seed, args.world)


def _default(field: str) -> Any:
    return DataConfig.model_fields[field].default


def _of_recipe(args: argparse.Namespace) -> MicroBatches:
    given = [f"--{name.replace('_', '-')}" for name in ONLY_DATA if getattr(args, name) is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: for --data only; with --config, override: batch.size=B seed=S data...")
    # imported here: networks take seconds to load, and --data needs none
    import torch

    from bigssl.engine.plan import preflight
    from bigssl.engine.plan.sources import source_order, split_batch
    from bigssl.objectives.base import config_union

    recipe = load_recipe(args.config, args.overrides, recipe_model(config_union()))
    process.use_data_settings(recipe.data)
    _, accum = split_batch(recipe, args.world)
    # No weights: of the networks, only what preparing a sample asks for. (transformers loads none onto "meta".)
    loads = any(backbone.pretrained for backbone in recipe.backbones.values())
    with torch.device("cpu" if loads else "meta"):
        objective, _ = preflight.build_networks(recipe)
    sizes = preflight.batch_sizes(recipe, objective)
    streams = {name: source_order(recipe, name, sizes[name], accum * args.world) for name in sizes}
    prepare = objective.prepare if recipe.data.on_error == "skip" else _nothing
    return _batches(streams, sizes, prepare, recipe.seed, args.world)


def _nothing(sample: Any, rng: Any, more: Any) -> dict[str, Any]:
    return {}


def _batches(
    streams: dict[str, Order], sizes: dict[str, int], prepare: Prepare, seed: int, world: int
) -> MicroBatches:
    """One pass per step: the keys of a rank are the same for any accumulation."""
    from bigssl.data.loading.loader import MicroBatches

    return MicroBatches(streams, sizes, prepare, dict, seed, rank=0, world=world, accum=1)
