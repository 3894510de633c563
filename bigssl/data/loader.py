"""Micro-batches in the order of the streams, prepared by worker processes.

The loader is a map from the number of a micro-batch to its content, so it does not matter which worker, or whether any,
computes it: every item is a pure function of (streams, seed, rank, world, number).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from bigssl.data.collate import collate
from bigssl.data.errors import DataError
from bigssl.data.rng import sample_rng
from bigssl.data.stream import Sample, Stream

Prepare = Callable[[Sample, np.random.Generator], dict[str, Any]]


@dataclass
class Batch:
    """What one micro-batch trains on: nested tensors, the keys per source in the same order, what was skipped and
    why."""

    data: Any
    keys: dict[str, list[str]]
    errors: list[str] = field(default_factory=list)

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
class MicroBatches(Dataset):
    """Item i is micro-batch i % accum of global step i // accum, for one rank."""

    streams: dict[str, Stream]
    sizes: dict[str, int]
    prepare: Prepare
    assemble: Callable[[dict[str, Any]], Any]
    seed: int
    rank: int
    world: int
    accum: int

    def __getitem__(self, item: int) -> Batch | DataError:
        """The batch, or the error that stops the run: raised by the loader, so that it has no worker's traceback."""
        try:
            return self._batch(item)
        except DataError as error:
            return error

    def _batch(self, item: int) -> Batch:
        parts: dict[str, Any] = {}
        keys: dict[str, list[str]] = {}
        errors: list[str] = []
        for name, stream in self.streams.items():
            places = self._places(name, item)
            if stream.remote:
                stream.announce(places, self._places(name, item + _stride()))
            loaded = [self._load(stream, int(place), errors) for place in places]
            keys[name] = [key for key, _ in loaded]
            parts[name] = collate([prepared for _, prepared in loaded], name or "sample")
        return Batch(self.assemble(parts), keys, errors)

    def _places(self, name: str, item: int) -> np.ndarray:
        step, micro = divmod(item, self.accum)
        return self.streams[name].micro_batch(step, self.sizes[name], self.rank, self.world, micro, self.accum)

    def _load(self, stream: Stream, position: int, errors: list[str]) -> tuple[str, dict[str, Any]]:
        """Key and prepared sample at `position`, or of the first good one that stands in for it."""
        for place in stream.candidates(position):
            try:
                sample = stream.read(place)
                return sample.key, self._prepare(sample)
            except DataError as error:
                if stream.on_error == "raise":
                    raise
                errors.append(str(error))
        last = errors[-1] if errors else ""
        raise DataError(f"source {stream.source!r}: no good sample in the place of position {position}: {last}")

    def _prepare(self, sample: Sample) -> dict[str, Any]:
        try:
            return self.prepare(sample, sample_rng(self.seed, sample.epoch, sample.key, sample.source))
        except DataError as error:
            where = f"source {sample.source!r}, shard {sample.shard}, sample {sample.key!r}"
            raise DataError(f"{where}: {error}") from error


def _stride() -> int:
    """Items from one of this worker to its next."""
    worker = get_worker_info()
    return worker.num_workers if worker else 1


class Loader(DataLoader):
    """A DataLoader that counts what its batches skipped and stops at the limit of their streams."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Workers live as long as this generator: torch stops them when the iterator below is dropped or exhausted.
        allowed = min((s.max_errors for s in self.dataset.streams.values()), default=0)  # type: ignore[attr-defined]
        skipped: set[str] = set()
        try:
            for batch in self._start():
                yield _checked(batch, skipped, allowed)
        except (ConnectionError, EOFError) as error:  # what is left of the connection to a process that was killed
            raise RuntimeError("a data worker died; if memory ran out, lower data.workers") from error

    def _start(self) -> Iterator[Any]:
        """Forks the workers with signals held back until each has arranged how to take them."""
        for stream in self.dataset.streams.values():  # type: ignore[attr-defined]
            stream.close()  # threads and connections of this process would be half of themselves in a fork
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _checked(batch: Batch | DataError, skipped: set[str], allowed: int) -> Batch:
    if isinstance(batch, DataError):
        raise batch
    skipped.update(batch.errors)
    if len(skipped) > allowed:
        last = batch.errors[-1]
        raise DataError(f"{len(skipped)} bad samples, data.max_errors allows {allowed}; the last: {last}")
    return batch


def make_loader(
    streams: dict[str, Stream],
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
) -> Loader:
    """Yields the `Batch` of every micro-batch of steps [start_step, stop_step) for `rank`, in order.

    sizes: global samples per step, by source. prepare(sample, generator) -> dict of arrays, in a worker;
    assemble({source: collated dict}) -> the data of the batch. The content does not depend on `workers`. Raises
    DataError by the streams' policy.
    """
    for name, stream in streams.items():
        stream.micro_batch(
            0, sizes[name], rank, world, 0, accum
        )  # refuses what cannot be dealt out before a worker starts
    dataset = MicroBatches(streams, sizes, prepare, assemble, seed, rank, world, accum)
    options: dict[str, Any] = {}
    if workers:
        # fork: prepare() holds tokenizers and settings of the running objective, which need not be picklable
        options = {"multiprocessing_context": "fork", "prefetch_factor": 2}
    return Loader(
        dataset,
        batch_size=None,
        sampler=range(start_step * accum, stop_step * accum),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        pin_memory=device_pin,
        **options,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    """One thread per worker, and no answer to signals that a terminal or scheduler sends to the whole process group.

    The main process decides when to stop: it may first finish its step and write a checkpoint, for which its workers
    must live. SIGTERM therefore counts only when the parent itself sent it.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid in (parent, 0):
            os._exit(0)
