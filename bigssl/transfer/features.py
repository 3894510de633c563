"""Frozen features of samples: of a network, or of the raw input that a network has to beat."""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.loading.collate import collate
from bigssl.data.order.stream import SampleReader, Stream, read_in_order
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.modality import modality_of_type
from bigssl.nets.modality.stretches import features_in_parts
from bigssl.transfer.inputs import Input, TextInput

TOGETHER = 256  # samples that are fetched at once from remote shards
AHEAD = 2  # batches that are prepared while a network works on another

T = TypeVar("T")


@dataclass(frozen=True)
class Views:
    """arrays: collated views by name, [B, ...], with the keys and metadata of the samples."""

    arrays: dict[str, Tensor]
    keys: list[str]
    meta: list[dict[str, Any]]


def column(keys: Sequence[str], meta: Sequence[dict[str, Any]], field: str) -> list[str]:
    for key, values in zip(keys, meta, strict=True):
        if values.get(field) is None:
            there = ", ".join(sorted(name for name, value in values.items() if value is not None)) or "none"
            raise DataError(f"sample {key!r}: no metadata field {field!r} in its json; it has {there}")
    return [decode.value_name(values[field]) for values in meta]


def read_samples(index: DatasetIndex, limit: int | None = None) -> Iterator[Sample]:
    """Every sample once, or a fixed fair subset of `limit` samples: the beginning of one shuffled order. Shuffled also
    where all are read: statistics by batch would otherwise be those of a class at a time."""
    stream = _mixed(index)
    return (stream.read(position) for position in range(min(limit or len(index), len(index))))


def holds(index: DatasetIndex, fields: Sequence[str]) -> bool:
    """Whether the first sample has one of these fields."""
    sample = next(read_in_order(index, 1), None)
    return sample is not None and any(field in sample.fields for field in fields)


def metadata(sample: Sample) -> dict[str, Any]:
    """The `json` member, {} where there is none, and where it is a list of captions beside a picture."""
    data = sample.fields.get("json")
    if data is None or not (decode.holds_object(data) or decode.only_json(sample.fields)):
        return {}
    return decode.meta(data)


def chosen(index: DatasetIndex, limit: int | None = None) -> Sequence[int]:
    """Ascending numbers of the samples that `read_samples` gives."""
    if limit is None or limit >= len(index):
        return range(len(index))
    return sorted(_mixed(index).locate_many(np.arange(limit))[1].tolist())


def _mixed(index: DatasetIndex) -> Stream:
    """A fair order of all samples: a batch of it is mixed however they were packed."""
    return Stream(index, seed=0)


def samples_at(index: DatasetIndex, numbers: Sequence[int]) -> Iterator[Sample]:
    """The samples with these numbers, in this order; remote ones are fetched in groups."""
    reader = SampleReader(index)
    try:
        for begin in range(0, len(numbers), TOGETHER):
            group = numbers[begin : begin + TOGETHER]
            if reader.remote:
                reader.announce(group, ())
            yield from map(reader.read, group)
    finally:
        reader.close()


def view_batches(samples: Iterable[Sample], taken: Input, *, batch: int) -> Iterator[Views]:
    """What a backbone takes of samples, in batches of `batch` (the last one smaller). Reading is in order, decoding on
    all cores, both while the batch before is worked on."""
    return ahead(lambda: _view_batches(samples, taken, batch))


def _view_batches(samples: Iterable[Sample], taken: Input, batch: int) -> Iterator[Views]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        reading = iter(samples)
        while group := list(itertools.islice(reading, batch)):
            arrays = collate(list(pool.map(taken.view, group)))
            yield Views(arrays, [s.key for s in group], [metadata(s) for s in group])


def ahead(make: Callable[[], Iterator[T]], count: int = AHEAD) -> Iterator[T]:
    """What `make` yields, in order, drawn by a thread up to `count` items before they are asked for; what it raises is
    raised where its item would have come. The thread, which begins with the first item, ends with the iterator."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(count)
    over = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not over.is_set():
            with suppress(queue.Full):
                ready.put((item, error), timeout=0.1)
                return

    def draw() -> None:
        error: BaseException = StopIteration()
        try:
            with closing(make()) as items:  # type: ignore[type-var]
                for item in items:
                    put(item, None)
                    if over.is_set():
                        return
        except BaseException as raised:
            error = raised
        put(None, error)

    worker = threading.Thread(target=draw, name="ahead", daemon=True)
    worker.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        over.set()
        worker.join()


def text_batches(texts: Sequence[str], taken: TextInput, *, batch: int) -> Iterator[Views]:
    """The same of texts, which are their own keys."""
    for start in range(0, len(texts), batch):
        part = list(texts[start : start + batch])
        yield Views(collate([taken.tokens(each) for each in part]), part, [])


Numbers = TypeVar("Numbers", Tensor, np.ndarray)


def finite(values: Numbers, what: str) -> Numbers:
    """The same numbers. Raises DataError of NaN and infinity: what is chosen by them, as the greatest or above a
    threshold, would look like an answer. (-inf is what is never chosen.)"""
    some = torch.as_tensor(values).detach()
    if odd := int((some.isnan() | some.isposinf()).sum()):
        raise DataError(f"{odd} of {some.numel()} {what} are not finite; look at the network's weights, or lower lr")
    return values


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient inside; afterwards every submodule is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def embed(model: PreTrainedModel, batch: Mapping[str, Tensor], parts: int | None = None) -> Tensor:
    """Collated views on the model's device, by the names of its modality -> features, float32 [B, D]; of each of
    `parts` stretches of time, one after the other (see `features_in_parts`)."""
    row = modality_of_type(model.config.model_type)
    if row is None:
        raise DataError(f"a {model.config.model_type} is of no modality that this version knows")
    return (row.features(model, batch) if parts is None else features_in_parts(model, batch, parts)).float()


def encoder(
    model: PreTrainedModel, device: str | torch.device, parts: int | None = None
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Encoder of collated views to float32 [B, D] (both on the CPU), by a model that is moved to `device`."""
    model.to(device)  # type: ignore[arg-type]

    def encode(batch: Mapping[str, Tensor]) -> Tensor:
        with evaluating(model):
            return embed(model, {name: value.to(device) for name, value in batch.items()}, parts).cpu()

    return encode
