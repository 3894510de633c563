"""Which samples of a source are looked at before a run: ones that it will read, a few of each dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from bigssl.config.recipe import SourceConfig
from bigssl.data.errors import DataError
from bigssl.data.order.mixture import Mixture
from bigssl.data.order.order import Order
from bigssl.data.order.sequential import SequentialStream, samples_of
from bigssl.data.order.stream import Stream
from bigssl.data.sample import Sample
from bigssl.data.shards.index import ShardInfo
from bigssl.data.shards.windows import is_step, mixed_rates

MOST = 4  # samples of a dataset
FURTHER = 64  # the first ones of a dataset, where MOST of them give nothing to learn from
OTHERS = 4  # further ones, of other shards where there are some, where all of these are bad and may be skipped
_Samples = list[Sample | DataError]
_NEAR = 1 << 14  # positions among which those beside each other are looked for


@dataclass(frozen=True)
class LookedAt:
    """One of a source: its field in the recipe, and its samples to look at (what cannot be read is an error).

    elsewhere: OTHERS more, each in a list, read when they are asked for. further: FURTHER of them, in the same way.
    """

    field: str
    url: str
    samples: _Samples
    elsewhere: Callable[[], Iterator[_Samples]]
    further: Callable[[], _Samples]


def datasets_of(order: Order, within: int) -> Iterator[LookedAt]:
    """Every dataset of a source with samples that the first `within` positions of its order hold."""
    source = f"data.sources.{order.source}"
    if isinstance(order, SequentialStream):
        first, *others = order.index.shards
        yield LookedAt(f"{source}.url", order.index.url, _from_front(order, first),
                       lambda: (_from_front(order, shard) for shard in others[:OTHERS]),
                       lambda: _from_front(order, first, FURTHER))  # fmt: skip
    elif isinstance(order, Mixture):
        for number, (dataset, part) in enumerate(order.parts.items()):
            looked = _read_within(order, part, within, partial(order.schedule.position, number))
            if looked[0]:
                yield LookedAt(f"{source}.mix.{dataset}.url", part.index.url, *looked)
    else:
        assert isinstance(order, Stream)
        yield LookedAt(f"{source}.url", order.index.url, *_read_within(order, order, within, int))


def _read_within(
    order: Order, stream: Stream, within: int, position: Callable[[int], int]
) -> tuple[_Samples, Callable[[], Iterator[_Samples]], Callable[[], _Samples]]:
    """_Samples of a dataset, what gives OTHERS, and what gives FURTHER. position: in `order`, of a place in the
    dataset's own."""

    def there(places: list[int]) -> list[int]:
        return [at for at in map(position, places) if at < within]

    places, first = _places(stream, within), list(range(min(within, len(stream), FURTHER)))
    return (
        _read(order, there(places)),
        lambda: (_read(order, [at]) for at in there(_elsewhere(stream, within, places))),
        lambda: _read(order, there(first)),
    )


def _places(stream: Stream, within: int) -> list[int]:
    """Positions of a dataset's first epoch to look at."""
    count = min(within, len(stream))
    if not stream.remote:
        return list(range(min(count, MOST)))  # of lanes that lie all over the dataset
    _, numbers = stream.locate_many(np.arange(min(count, _NEAR)))
    shards = np.searchsorted(stream.index.offsets, numbers, side="right")
    beside = np.flatnonzero(shards == shards[0])
    return beside[np.argsort(abs(numbers[beside] - numbers[0]), kind="stable")][:MOST].tolist()


def _elsewhere(stream: Stream, within: int, looked: list[int]) -> list[int]:
    """Positions of OTHERS: the first in other shards than those of `looked`, then whatever comes first."""
    count = min(within, len(stream), _NEAR)
    _, numbers = stream.locate_many(np.arange(count))
    shards = np.searchsorted(stream.index.offsets, numbers, side="right")
    _, firsts = np.unique(shards, return_index=True)
    known = set(shards[looked].tolist())
    others = [at for at in sorted(firsts.tolist()) if shards[at] not in known]
    return [*others, *(at for at in range(count) if at not in {*looked, *others})][:OTHERS]


def _read(order: Order, positions: list[int]) -> _Samples:
    try:
        if order.remote:
            order.announce(positions, [])
    except DataError as error:
        return [error]
    return [_at(order, position) for position in positions]


def _at(order: Order, position: int) -> Sample | DataError:
    try:
        return order.read(position)
    except DataError as error:
        return error


def _from_front(stream: SequentialStream, shard: ShardInfo, most: int = MOST) -> _Samples:
    try:
        with closing(samples_of(shard.url, stream.index.remote)) as samples:
            first = list(islice(samples, most))
    except DataError as error:
        return [error]
    return [Sample(key, fields, at, 0, shard.name, stream.source) for at, (key, fields) in enumerate(first)]


def refused_rates(source: SourceConfig, samples: Iterable[Sample | DataError]) -> str:
    """What is wrong with the rates of these samples of a source; nothing where it says that they are mixed."""
    if source.rates == "mixed":
        return ""
    steps = [(sample.key, step) for sample in samples if isinstance(sample, Sample) and is_step(step := _step(sample))]
    return mixed_rates(steps)


def _step(sample: Sample) -> Any:
    if not {"npy", "json"} <= sample.fields.keys():
        return None
    try:
        facts = json.loads(sample.fields["json"])
    except ValueError:  # a task that reads it says so
        return None
    return facts.get("step") if isinstance(facts, dict) else None
