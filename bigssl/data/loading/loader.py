"""Micro-batches in the order of the streams, prepared by worker processes.

The loader is a map from the number of a micro-batch to its content, so it does not matter which worker, or whether any,
computes it: every item is a pure function of (streams, seed, rank, world, number).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bigssl.data.errors import DataError
from bigssl.data.loading.collate import collate
from bigssl.data.loading.drawn import Bad, Draws, NotHereYet, NothingToDraw, Shelf, where
from bigssl.data.loading.pinning import Batches, in_thread
from bigssl.data.loading.watchdog import PREPARING, Stages, Watchdog
from bigssl.data.loading.workers import computed_in_order
from bigssl.data.order.order import More, Order
from bigssl.data.order.rng import sample_rng, seeds
from bigssl.data.sample import Sample

_TOGETHER = 32  # samples that are read before they are prepared
SEEDS = "sample_seeds"
"""Field that the loader adds to the batch of each source, int64 [B]: a function of (run seed, source, position), for
what is random on the device, such as dropout."""
Prepare = Callable[[Sample, np.random.Generator, More], dict[str, Any]]
Prepared = tuple[str, dict[str, Any]]
"""Key and content of a sample."""


@dataclass
class Batch:
    """What one micro-batch trains on: nested tensors, the keys per source in the same order, what was skipped and
    why."""

    data: Any
    keys: dict[str, list[str]]
    errors: list[Bad] = field(default_factory=list)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device` (copies from pinned memory do not block)."""
        return Batch(_each(self.data, lambda tensor: tensor.to(device, non_blocking=True)), self.keys, self.errors)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return Batch(_each(self.data, torch.Tensor.pin_memory), self.keys, self.errors)


def _each(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _each(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each(item, function) for item in value)
    return value


@dataclass
class MicroBatches:
    """Item i is micro-batch i % accum of global step i // accum, for one rank.

    stride: items from one that a process computes to its next; 0: it is not known.
    steps: of the run, by which samples know how much of it is done; 0: of no run, samples are those of its beginning.
    """

    streams: dict[str, Order]
    sizes: dict[str, int]
    prepare: Prepare
    assemble: Callable[[dict[str, Any]], Any]
    seed: int
    rank: int
    world: int
    accum: int
    stages: Stages = field(default_factory=lambda: Stages(0, {}))
    stride: int = 0
    steps: int = 0

    def __getitem__(self, item: int) -> Batch | DataError:
        """The batch, or the error that stops the run: raised by the loader, so that it has no worker's traceback."""
        try:
            return self._batch(item)
        except DataError as error:
            return error

    def _batch(self, item: int) -> Batch:
        wanted = self.places(*divmod(item, self.accum))
        loaded, errors = self._samples(item, wanted)
        self.stages.publish("collating")
        keys = {name: [key for key, _ in pairs] for name, pairs in loaded.items()}
        parts = {name: collate([data for _, data in pairs], name or "sample") for name, pairs in loaded.items()}
        for name, places in wanted.items():
            parts[name][SEEDS] = torch.from_numpy(seeds(np.array(places), self.seed, name))
        return Batch(self.assemble(parts), keys, errors)

    def places(self, step: int, micro: int) -> dict[str, list[int]]:
        """Positions by source of one micro-batch, in order."""
        deal = (self.rank, self.world, micro, self.accum)
        return {name: s.micro_batch(step, self.sizes[name], *deal).tolist() for name, s in self.streams.items()}

    def samples(self, step: int, micro: int) -> tuple[dict[str, list[Prepared]], list[Bad]]:
        """({source: (key, prepared sample) in order}, what was skipped and why) of one micro-batch."""
        return self._samples(step * self.accum + micro, self.places(step, micro))

    def _samples(self, item: int, wanted: dict[str, list[int]]) -> tuple[dict[str, list[Prepared]], list[Bad]]:
        later = self._announce(item, wanted)
        errors: list[Bad] = []
        share = item // self.accum / self.steps if self.steps else 0.0
        loaded = {
            name: list(self._load(name, places, later.get(name, []), share, errors)) for name, places in wanted.items()
        }
        return loaded, errors

    def _announce(self, item: int, wanted: dict[str, list[int]]) -> dict[str, list[int]]:
        """Have remote samples fetched together: those of this micro-batch and of the next of this process, which are
        returned."""
        remote = [name for name, stream in self.streams.items() if stream.remote]
        later = self.places(*divmod(item + self.stride, self.accum)) if remote and self.stride else {}
        for name in remote:
            self.streams[name].announce(wanted[name], later.get(name, []))
        return later

    def close(self) -> None:
        """End threads and connections of the streams: a fork would get half of them."""
        for stream in self.streams.values():
            stream.close()

    def _load(
        self, name: str, places: list[int], later: list[int], share: float, errors: list[Bad]
    ) -> Iterator[Prepared]:
        """Key and prepared sample of each of the positions `places`. later: what was announced to come after them.
        share: of the run that is done.

        Some are read, then prepared: in turn, each would find the processor's caches full of the other's code.
        """
        for begin in range(0, len(places), _TOGETHER):
            part, rest = places[begin : begin + _TOGETHER], places[begin + _TOGETHER :]
            firsts = {place: self._read(name, place) for place in part}
            shelf = Shelf(self.streams[name], name, self.stages, share)
            done: dict[int, tuple[Prepared, list[Bad]]] = {}
            while self._prepare_some(shelf, firsts, done):
                shelf.fetch(rest, later)
            for place in part:
                prepared, bad = done[place]
                errors += bad
                yield prepared

    def _prepare_some(
        self, shelf: Shelf, firsts: dict[int, Sample | DataError], done: dict[int, tuple[Prepared, list[Bad]]]
    ) -> bool:
        """Prepare those of `firsts` that are not `done`; whether some wait for what they drew."""
        for place, first in firsts.items():
            if place not in done:
                with contextlib.suppress(NotHereYet):
                    done[place] = self._good(shelf, place, first)
        return len(done) < len(firsts)

    def _read(self, name: str, place: int) -> Sample | DataError:
        self.stages.publish("reading", name, place)
        try:
            return self.streams[name].read(place)
        except DataError as error:
            return error

    def _good(self, shelf: Shelf, position: int, first: Sample | DataError) -> tuple[Prepared, list[Bad]]:
        """`first`, the sample at `position`, or the first good one that stands in for it; and what was bad."""
        stream, name, errors = shelf.stream, shelf.name, list[Bad]()
        for place in stream.candidates(position):
            sample = first if place == position else self._read(name, place)
            try:
                if isinstance(sample, DataError):
                    raise sample
                return (sample.key, self._prepare(shelf, sample._replace(done=shelf.done), errors)), errors
            except NothingToDraw:
                raise
            except DataError as error:
                if stream.on_error == "raise":
                    raise
                read = None if isinstance(sample, DataError) else sample
                errors.append(Bad(name, stream.identity(place, read), str(error)))
        raise DataError(
            f"source {stream.source!r}: no good sample in the place of position {position}: it and what may stand in "
            f"for it are bad (data.max_errors {stream.max_errors}, {len(stream)} samples); the last: {errors[-1].cause}"
        )

    def _prepare(self, shelf: Shelf, sample: Sample, errors: list[Bad]) -> dict[str, Any]:
        self.stages.publish(PREPARING, shelf.name, sample.position, sample.key)
        more = Draws(shelf, sample, errors)
        try:
            return self.prepare(sample, sample_rng(self.seed, sample.epoch, sample.key, sample.source), more)
        except NothingToDraw:
            raise
        except DataError as error:
            raise DataError(f"source {sample.source!r}, {where(sample)}{more.given}: {error}") from error


@dataclass
class Loader:
    """The batches of `items`, in order. An item that is a DataError is raised.

    batch: computes an item, in one of `workers` processes (0: in this one). They live as long as an iteration.
    """

    batch: Callable[[int], Batch | DataError]
    items: range
    workers: int
    stages: Stages
    watchdog: Watchdog
    before_fork: Callable[[], None]
    pin: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Batch]:
        batches = self._computed()
        if self.pin:
            batches = in_thread(batches, _pin) if self.workers else (_pin(batch) for batch in batches)
        with contextlib.closing(batches):  # now, not when the last traceback that holds it is gone
            for batch in batches:
                if isinstance(batch, DataError):
                    raise batch
                yield batch

    def _computed(self) -> Batches:
        if self.workers:
            self.before_fork()
            return computed_in_order(self.batch, self.items, self.workers, self.stages, self.watchdog)
        return self._here()

    def _here(self) -> Batches:
        for item in self.items:
            with self.watchdog.guarding():
                batch = self.batch(item)
            yield batch


def _pin(batch: Batch | DataError) -> Batch | DataError:
    return batch.pin_memory() if isinstance(batch, Batch) else batch


def make_loader(
    streams: dict[str, Order],
    sizes: dict[str, int],
    prepare: Prepare,
    assemble: Callable[[dict[str, Any]], Any],
    *,
    seed: int,
    rank: int,
    world: int,
    accum: int,
    workers: int,
    start_step: int,
    stop_step: int,
    device_pin: bool,
    warn_after: float = 0,
    abort_after: float = 0,
) -> Loader:
    """Yields the `Batch` of every micro-batch of steps [start_step, stop_step) for `rank`, in order, of a run that ends
    with stop_step.

    sizes: global samples per step, by source. prepare(sample, generator, more) -> dict of arrays, in a worker;
    assemble({source: collated dict}) -> the data of the batch. The content does not depend on `workers`.
    warn_after, abort_after: seconds of the `Watchdog`. Raises DataError by the streams' policy, and when a worker ends.
    """
    for name, stream in streams.items():
        stream.micro_batch(
            0, sizes[name], rank, world, 0, accum
        )  # refuses what cannot be dealt out before a worker starts
    stages = Stages(workers, streams)
    batches = MicroBatches(streams, sizes, prepare, assemble, seed, rank, world, accum, stages, max(workers, 1),
                           stop_step)  # fmt: skip
    return Loader(
        batches.__getitem__,
        range(start_step * accum, stop_step * accum),
        workers,
        stages,
        Watchdog(stages, rank=rank, workers=workers, warn=warn_after, abort=abort_after),
        before_fork=batches.close,
        pin=device_pin,
    )
