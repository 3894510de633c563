"""`bigssl shards replay`: which samples each rank of a run trains on, step by step, without the run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.types import NonNegativeInt, PositiveInt

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import DataConfig, load_recipe
from bigssl.data.errors import DataError, display
from bigssl.data.loading import process
from bigssl.data.loading.ledger import StepKeys, ledger_lines
from bigssl.data.loading.loader import Loader, MicroBatches, Prepare
from bigssl.data.loading.skipped import Tally
from bigssl.data.loading.watchdog import Stages, Watchdog
from bigssl.data.order.order import Order
from bigssl.data.order.stream import Stream
from bigssl.data.shards.index import DatasetIndex

WITH_DATA = Parameter(group=Group("With --data"))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OnlyData:
    """What a recipe would say."""

    batch: Annotated[PositiveInt | None, WITH_DATA] = None
    """samples per step over all ranks"""
    seed: Annotated[NonNegativeInt | None, WITH_DATA] = None
    """seed of the order"""
    lanes: Annotated[PositiveInt | None, WITH_DATA] = None
    """data.lanes (256)"""
    window: Annotated[PositiveInt | None, WITH_DATA] = None
    """data.shuffle_window (1024)"""
    on_error: Annotated[Literal["raise", "skip"] | None, WITH_DATA] = None
    """data.on_error (raise)"""


def replay(
    *overrides: str, steps: PositiveInt, config: str | None = None, data: str | None = None, world: PositiveInt = 1,
    workers: NonNegativeInt = 0, start: Annotated[NonNegativeInt, Parameter(name="--from")] = 0,
    no_read: bool = False, only: OnlyData | None = None,
) -> None:  # fmt: skip
    """
    Prints {"step": s, "rank": r, "keys": [...]} as JSON lines, ordered by step and rank: exactly what rank r of --world
    trains on in step s, and what it writes to ledger-rankN.jsonl under data.ledger=true. The keys of a step, ranks in
    order, are the global batch. Steps count from 0: step s is the one that leads to the metrics of step s + 1, and
    --from s is what a run does first after checkpoint step-s. With several sources, each has a line of its own, with
    its name as "source". Where data.on_error is skip, samples are also prepared as the run does, so that the stand-ins
    of bad ones are the same. Exit status 2 names the damage that would stop the run.

    Args:
        overrides: with --config: recipe fields to change, a.b=c
        steps: how many
        config: recipe
        data: in its place: a folder with index.json, a tar, or a brace pattern
        world: ranks
        workers: loader processes, shared by the ranks
        start: first step
        no_read: keys from the index alone, as if nothing were damaged
    """
    if (config is None) == (data is None):
        raise ConfigError("replay: one of --config RECIPE and --data URL is needed")
    only = only or OnlyData()
    if config is not None:
        batches = _of_recipe(config, list(overrides), only, world)
    else:
        batches = _of_data(str(data), overrides, only, world)
    for text in records(batches, workers, start, steps, check=not no_read):
        sys.stdout.write(text)
    sys.stdout.flush()


def records(batches: MicroBatches, workers: int, start: int, steps: int, *, check: bool) -> Iterator[str]:
    """The lines of steps [start, start + steps) for every rank of `batches.world`, ordered by step and rank.

    The ranks share `workers` processes. check: see `StepKeys`. Bad samples are
    counted from `start` on. Raises DataError where a run that logs each step would, after the lines of that step.
    """
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


def _of_data(url: str, overrides: tuple[str, ...], only: OnlyData, world: int) -> MicroBatches:
    missing = [f"--{name}" for name in ("batch", "seed") if getattr(only, name) is None]
    if only.batch is None or only.seed is None or overrides:
        wrong = f"missing: {', '.join(missing)}" if missing else f"overrides {list(overrides)} are for --config"
        raise DataError(f"--data {url} needs --batch and --seed and takes no overrides; {wrong}")
    name = display(url)
    stream = Stream(
        DatasetIndex.load(url), seed=only.seed, lanes=only.lanes or _default("lanes"),
        window=only.window or _default("shuffle_window"), on_error=only.on_error or _default("on_error"),
        max_errors=_default("max_errors"), source=name,
    )  # fmt: skip
    stream.micro_batch(0, only.batch, 0, world, 0, 1)  # refuses what cannot be dealt out
    return _batches({name: stream}, {name: only.batch}, _nothing, only.seed, world)


def _default(field: str) -> Any:
    return DataConfig.model_fields[field].default


def _of_recipe(config: str, overrides: list[str], only: OnlyData, world: int) -> MicroBatches:
    given = [f"--{name.replace('_', '-')}" for name, value in vars(only).items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: for --data only; with --config, override: batch.size=B seed=S data...")
    # imported here: torch's network classes take seconds to load, and --data needs none
    import torch

    from bigssl.cli.recipes import model
    from bigssl.engine.plan import preflight
    from bigssl.engine.plan.sources import source_order, split_batch

    recipe = load_recipe(config, overrides, model())
    process.use_data_settings(recipe.data)
    _, accum = split_batch(recipe, world)
    # No weights: of the networks, only what preparing a sample asks for. (transformers loads none onto "meta".)
    loads = any(backbone.init_from for backbone in recipe.backbones.values())
    with torch.device("cpu" if loads else "meta"):
        objective, _ = preflight.build_networks(recipe)
    sizes = preflight.batch_sizes(recipe, objective)
    streams = {name: source_order(recipe, name, sizes[name], accum * world) for name in sizes}
    prepare = objective.prepare if recipe.data.on_error == "skip" else _nothing
    return _batches(streams, sizes, prepare, recipe.seed, world)


def _nothing(sample: Any, rng: Any, more: Any) -> dict[str, Any]:
    return {}


def _batches(
    streams: dict[str, Order], sizes: dict[str, int], prepare: Prepare, seed: int, world: int
) -> MicroBatches:
    """One pass per step: the keys of a rank are the same for any accumulation."""
    return MicroBatches(streams, sizes, prepare, dict, seed, rank=0, world=world, accum=1)
