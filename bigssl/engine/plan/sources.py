"""Checks of batch and sources: do ranks share a step evenly, and does the data fill it?"""

from __future__ import annotations

import os
import sys

from bigssl.config.errors import ConfigError, nearest
from bigssl.config.recipe import BatchConfig, Recipe, SourceConfig
from bigssl.data.errors import DataError, display
from bigssl.data.order.mixture import Mixture
from bigssl.data.order.order import Order
from bigssl.data.order.sequential import SequentialIndex, SequentialStream
from bigssl.data.order.stream import Stream
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.shards.windows import WindowIndex
from bigssl.engine.plan.evaluation import load_index


def split_batch(recipe: Recipe, world: int) -> tuple[int, int]:
    """(micro, accum) with size = micro × accum × world."""
    batch = recipe.batch
    accum = batch.accum or (max(1, batch.size // (batch.micro * world)) if batch.micro else 1)
    micro = batch.micro or batch.size // (accum * world)
    if micro * accum * world != batch.size:
        raise ConfigError(
            f"batch.size: value {batch.size} is not micro {micro} × accum {accum} × world {world} = "
            f"{micro * accum * world}; allowed: {_fitting_batches(batch, world, micro)}"
        )
    return micro, accum


def _fitting_batches(batch: BatchConfig, world: int, micro: int) -> str:
    """The smallest changes that would pass, each alone."""

    def fits(size: int, micro: int | None, ranks: int) -> bool:
        product = (micro or 1) * (batch.accum or 1) * ranks
        return size == product if micro and batch.accum else size % product == 0

    unit = (batch.micro or 1) * (batch.accum or 1) * world
    below = batch.size // unit * unit
    micros = [m for m in range(1, batch.size + 1) if fits(batch.size, m, world)]
    fewer = [w for w in range(1, min(world, batch.size + 1)) if fits(batch.size, batch.micro, w)][-1:]
    more = [w for w in range(world + 1, batch.size + 1) if fits(batch.size, batch.micro, w)][:1]
    choices = {
        "batch.size": [size for size in (below, below + unit) if size and fits(size, batch.micro, world)] or [unit],
        "batch.micro": sorted(sorted(micros, key=lambda m: abs(m - micro))[:3]) if batch.micro else [],
        "a world of": fewer + more,
    }
    return "; or ".join(f"{name} {', '.join(map(str, values))}" for name, values in choices.items() if values)


def source_order(recipe: Recipe, name: str, size: int, parts: int) -> Order:
    """The order of source `name`, from which `parts` = accum × world micro-batches take `size` samples a step.

    Raises:
        ConfigError: field, value, what is allowed.
    """
    source, where = source_config(recipe, name), f"data.sources.{name}"
    if size % parts:
        near = [multiple for multiple in (size // parts * parts, -(-size // parts) * parts) if multiple]
        raise ConfigError(
            f"{where}.batch: value {size}; allowed: a multiple of accum × world = {parts} "
            f"(nearest: {', '.join(map(str, near))})"
        )
    indexes = source_indexes(source, where)
    for index in indexes.values():
        said = index.limits if isinstance(index, SequentialIndex) else index.said if isinstance(
            index, WindowIndex) else ""  # fmt: skip
        if said and int(os.environ.get("RANK") or 0) == 0:
            print(f"{where}: {said}", file=sys.stderr, flush=True)
    for field, index in indexes.items():
        if len(index.shards) < source.min_shards:
            raise ConfigError(
                f"{where}.{field}: {len(index.shards)} shards in {display(index.url)}; allowed: >= {source.min_shards}"
            )
    order = _order(recipe, name, source, list(indexes.values()))
    _refuse_repeats(order, size, where)
    return order


def source_indexes(source: SourceConfig, where: str) -> dict[str, DatasetIndex]:
    """The index of each URL, by its field below `where`. ConfigError where one cannot be read."""
    if source.url is None or source.samples is None:
        return {field: _windows(source, load_index(url, f"{where}.{field}"), f"{where}.{field}")
                for field, url in source.urls.items()}  # fmt: skip
    try:
        return {"url": SequentialIndex(source.url, source.samples)}
    except (DataError, OSError) as error:
        raise ConfigError(f"{where}.url: {error}") from None


def _windows(source: SourceConfig, index: DatasetIndex, field: str) -> DatasetIndex:
    if source.windows is None:
        return index
    how = source.windows
    try:
        return WindowIndex(index, how.length, how.stride, short=how.short, mixed=source.rates == "mixed")
    except (DataError, OSError) as error:
        raise ConfigError(f"{field}: {error}") from None


def source_config(recipe: Recipe, name: str) -> SourceConfig:
    """The section of source `name`; ConfigError where there is none."""
    names = sorted(recipe.data.sources)
    if name not in recipe.data.sources:
        allowed = ", ".join(names)
        raise ConfigError(f"objective: no source {name!r} under data.sources; allowed: {allowed}{nearest(name, names)}")
    return recipe.data.sources[name]


def _order(recipe: Recipe, name: str, source: SourceConfig, indexes: list[DatasetIndex]) -> Order:
    data, seed = recipe.data, recipe.seed
    lanes, window, on_error, most = data.lanes, data.shuffle_window, data.on_error, data.max_errors
    if isinstance(indexes[0], SequentialIndex):
        return SequentialStream(indexes[0], seed=seed, window=window, source=name, on_error=on_error, max_errors=most)
    if source.mix is None:
        return Stream(indexes[0], seed=seed, lanes=lanes, window=window, source=name, on_error=on_error,
                      max_errors=most)  # fmt: skip
    of = dict(zip(source.mix, indexes, strict=True))
    weights = _by_size({dataset: mixed.weight for dataset, mixed in source.mix.items()}, of, source.power)
    try:
        return Mixture(of, weights, seed=seed, lanes=lanes, window=window,
                       source=name, on_error=on_error, max_errors=most)  # fmt: skip
    except DataError as error:
        raise ConfigError(f"data.sources.{name}.mix: {error}") from None


def _by_size(
    weights: dict[str, float], indexes: dict[str, DatasetIndex], power: float
) -> dict[str, float]:
    """Weights times numbers of samples to a power, as millionths of their sum: a schedule wants ratios of whole
    numbers."""
    if not power:
        return weights
    sized = {name: weight * len(indexes[name]) ** power for name, weight in weights.items()}
    return {name: float(max(1, round(1e6 * weight / sum(sized.values())))) for name, weight in sized.items()}


def _refuse_repeats(order: Order, size: int, where: str) -> None:
    """A step must not take more from a dataset than it holds: it would hold one sample twice."""
    if isinstance(order, Mixture):
        for number, (dataset, stream) in enumerate(order.parts.items()):
            most = order.schedule.most(number, size)
            if most > len(stream):
                raise ConfigError(
                    f"{where}.mix.{dataset}: a step of {size} takes up to {most} samples, but "
                    f"{display(stream.index.url)} holds {len(stream)} (a batch would hold one twice); allowed: a lower "
                    f"weight, or {where}.batch <= {size * len(stream) // most}"
                )
    elif isinstance(order, Stream) and len(order) < size:
        raise ConfigError(
            f"{where}.batch: value {size}, but {display(order.index.url)} holds {len(order)} samples in "
            f"{len(order.index.shards)} shards; allowed: <= {len(order)} (a batch would hold one sample twice)"
        )
