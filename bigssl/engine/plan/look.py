"""A look at the data: do the task and its networks take what the sources really hold?

A few samples of each dataset go the way that they go in training, through `prepare`, `collate` and `assemble`, and then
through the networks on tensors that have shapes but no memory (passes.py). Every rank looks at the same samples and
finds the same, so that all of them refuse. Nothing is left behind: the streams are closed as before a fork, and all
generators are as they were.

The samples are ones that the run will read: local ones from as many shards as can be, remote ones that lie beside each
other, which is a sidecar and one range (samples.py). A `pipe:` command is not started.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bigssl.config.recipe import Recipe
from bigssl.data.errors import DataError, display
from bigssl.data.loading.collate import collate
from bigssl.data.loading.drawn import Draws, NotHereYet, Shelf, where
from bigssl.data.loading.watchdog import Stages
from bigssl.data.order.order import Order, as_it_is
from bigssl.data.order.rng import sample_rng
from bigssl.data.order.sequential import SequentialStream
from bigssl.data.remote.pipes import PIPE
from bigssl.data.sample import Sample
from bigssl.data.shards import storage
from bigssl.engine.plan.fitting import judge_pictures, judge_tokens
from bigssl.engine.plan.samples import LookedAt, datasets_of, refused_rates
from bigssl.nets.modality import MODALITIES
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective
from bigssl.objectives.joint import Joint


@dataclass
class Looked:
    """What was seen. failures, warnings: a line each. prepared: by source, what may go through the networks."""

    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    prepared: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def look(
    recipe: Recipe, objective: Objective, towers: Mapping[str, Tower], orders: Mapping[str, Order],
    sizes: Mapping[str, int],
) -> Looked:  # fmt: skip
    """Prepare a few samples of every dataset of `orders`, as the first steps of `sizes` samples a source would.

    Where `data.on_error` is skip, bad ones are passed over unless all of a dataset are.
    """
    found = Looked()
    for name, order in orders.items():
        if isinstance(order, SequentialStream) and order.index.shards[0].url.startswith(PIPE):
            found.warnings.append(f"data.sources.{name}.url: a command, which the run alone starts: nothing of what "
                                  "it gives was looked at")  # fmt: skip
            continue
        try:
            _source(found, recipe, objective, towers, order, recipe.steps * sizes[name])
        finally:
            order.close()
    return found


def with_shards(orders: Mapping[str, Order]) -> tuple[dict[str, Order], list[str]]:
    """The sources that can be looked at, and a note on each of which the manifest alone is here."""
    firsts = {name: [index.shards[0].url for index in order.indexes.values()] for name, order in orders.items()}
    gone = {name for name, urls in firsts.items() if not any(_is_here(url) for url in urls)}
    notes = [f"data.sources.{name}: its shards are not here, so nothing was looked at: planned from the manifest"
             for name in orders if name in gone]  # fmt: skip
    return {name: order for name, order in orders.items() if name not in gone}, notes


def _is_here(shard: str) -> bool:
    return not storage.is_local(shard) or storage.exists(shard)


def leaves(objective: Objective) -> Iterator[tuple[str, Objective]]:
    """The tasks that prepare samples and compute a loss, each with its name in a joint one ("": it is the only one)."""
    if not isinstance(objective, Joint):
        yield "", objective
        return
    for name, part in objective.parts.items():
        assert isinstance(part, Objective)
        yield name, part


def called_in_recipe(name: str, part: Objective) -> str:
    """A task by its field: `objective.parts.views (simclr)`."""
    return f"objective{f'.parts.{name}' if name else ''} ({part.config.name})"


def towers_in(part: torch.nn.Module, towers: Mapping[str, Tower]) -> dict[str, Tower]:
    """The backbones that a task uses."""
    inside = {id(module) for module in part.modules()}
    return {name: tower for name, tower in towers.items() if id(tower) in inside}


def _source(
    found: Looked, recipe: Recipe, objective: Objective, towers: Mapping[str, Tower], order: Order, within: int
) -> None:
    shelf, prepared, failures = Shelf(order, order.source, Stages(0, {})), list[dict[str, Any]](), list[str]()
    looked = list[Sample | DataError]()
    for dataset in datasets_of(order, within):
        looked += dataset.samples
        good, bad = _prepared(shelf, objective, dataset.samples, recipe.seed)
        if not good and order.on_error == "skip":  # a run would go on from one dead shard to the next
            others = (_prepared(shelf, objective, each, recipe.seed)[0] for each in dataset.elsewhere())
            good = next(filter(None, others), good)
        prepared += good
        if bad and (order.on_error == "raise" or not good):
            failures.append(_refused(dataset, *bad[0], objective, towers, order.source))
            continue
        for name, part in leaves(objective):
            if order.source in part.sources():
                own = [each[name] if name else each for each in good]
                if own and part.unfit(own):
                    further = _prepared(shelf, objective, dataset.further(), recipe.seed)[0]
                    if why := part.unfit([each[name] if name else each for each in further] or own):
                        who = called_in_recipe(name, part)
                        failures.append(f"{dataset.field}: value {display(dataset.url)!r}: {who}: {why}")
                failed, warned = judge_tokens(recipe, towers_in(part, towers), dataset.field, own)
                failures += failed
                found.warnings += warned
                seen = judge_pictures(towers_in(part, towers), dataset.field, dataset.samples)
                found.warnings += [said for said in seen if said not in found.warnings]
    if said_of_rates := refused_rates(recipe.data.sources[order.source], looked):
        failures.append(f"data.sources.{order.source}: {said_of_rates}")
    if not failures:
        try:
            collate(prepared, order.source)
        except DataError as error:
            failures.append(f"data.sources.{order.source}: {error}")
    found.failures += failures
    if not failures:
        found.prepared[order.source] = prepared


def _prepared(
    shelf: Shelf, objective: Objective, samples: list[Sample | DataError], seed: int
) -> tuple[list[dict[str, Any]], list[tuple[Sample | None, Exception]]]:
    """What `prepare` makes of the samples, in order, and those that are bad with the reason."""
    good: dict[int, dict[str, Any]] = {}
    bad: dict[int, tuple[Sample | None, Exception]] = {
        at: (None, error) for at, error in enumerate(samples) if isinstance(error, DataError)
    }
    waiting: dict[int, Sample] = {at: each for at, each in enumerate(samples) if isinstance(each, Sample)}
    while waiting:
        for at, sample in list(waiting.items()):
            try:
                generator = sample_rng(seed, sample.epoch, sample.key, sample.source)
                good[at] = objective.prepare(sample, generator, Draws(shelf, sample, []))
            except NotHereYet:  # it drew another, which is fetched with those of its neighbours
                continue
            except Exception as error:  # whatever a task raises
                bad[at] = sample, error
            del waiting[at]
        if waiting:
            shelf.fetch([], [])
    return [good[at] for at in sorted(good)], [bad[at] for at in sorted(bad)]


def _refused(
    dataset: LookedAt, sample: Sample | None, error: Exception, objective: Objective,
    towers: Mapping[str, Tower], source: str,
) -> str:  # fmt: skip
    head = f"{dataset.field}: value {display(dataset.url)!r}"
    if sample is None:
        return f"{head}: {error}"
    cause = said(error).removeprefix(f"{where(sample)}: ")
    name, part = _whose(objective, sample, source)
    takes = sorted({MODALITIES[tower.modality].takes for tower in towers_in(part, towers).values()})
    who = called_in_recipe(name, part)
    return f"{head}: {where(sample)}: {cause}; {who}, which reads it, takes {' and '.join(takes)}"


def _whose(objective: Objective, sample: Sample, source: str) -> tuple[str, Objective]:
    """The task that cannot prepare a sample: of several that read it, the first that fails alone."""
    reading = [(name, part) for name, part in leaves(objective) if source in part.sources()]
    for name, part in reading:
        try:
            part.prepare(sample, np.random.default_rng(0), _none_more)
        except NotHereYet:
            continue
        except Exception:
            return name, part
    return reading[0]


def _none_more(rng: np.random.Generator, /, use: Callable[[Sample], Any] = as_it_is) -> Any:
    """A `more` with which a task that draws ends early: its own sample is good then."""
    raise NotHereYet


def said(error: Exception) -> str:
    """An error in one line; of one that nobody meant for a reader, the place where it was raised."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, DataError):
        return text
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} ({Path(last.filename).name}, line {last.lineno})"


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """The generators of this process are as before: a task that draws from one trains as if nobody had looked."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
