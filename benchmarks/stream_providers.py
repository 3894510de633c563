"""The loaders that the stream's benchmark compares, each in the form in which its own documentation uses it.

A provider writes the samples in its format and reads them again as batches (keys, {name: tensor [B, ...]}); reading
ends with the epoch. The peers are given what is fastest for each: tensors collated by torch into shared memory.
"""

import importlib.metadata
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stream_samples import Transform, Workload
from torch.utils.data import DataLoader, default_collate

from bigssl.data.loading import loader
from bigssl.data.loading.loader import SEEDS, make_loader
from bigssl.data.order.stream import Stream
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item

Samples = list[tuple[str, bytes]]
Batch = tuple[list[str], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Provider:
    """write(samples, field, folder, shards) makes its copy; read(folder, transform, workload, workers) gives an
    epoch."""

    package: str
    write: Callable[[Samples, str, Path, int], None]
    read: Callable[[Path, Transform, Workload, int], Iterable[Batch]]


def write_tars(samples: Samples, field: str, folder: Path, shards: int) -> None:
    items = [Item(key, key, lambda content=content: {field: content}) for key, content in samples]
    pack(items, folder / "tars", name="shard", shard_size=-(-len(items) // shards))


def nothing_to_write(samples: Samples, field: str, folder: Path, shards: int) -> None:
    """The provider reads the tars."""


def ours(folder: Path, transform: Transform, workload: Workload, workers: int) -> Iterator[Batch]:
    stream = Stream(DatasetIndex.load(folder / "tars"), seed=0)

    def prepare(sample: Sample, generator: np.random.Generator, more: object) -> dict[str, Any]:
        return transform.prepare(sample.fields[workload.field], generator)

    def assemble(parts: dict[str, Any]) -> Any:
        return {name: value for name, value in parts[""].items() if name != SEEDS}

    steps = -(-len(stream) // workload.batch)
    batches = make_loader(
        {"": stream}, {"": workload.batch}, prepare, assemble, seed=0, rank=0, world=1, accum=1,
        workers=workers, start_step=0, stop_step=steps, device_pin=False,
    )  # fmt: skip
    for batch in batches:
        yield batch.keys[""], batch.data


def dataloader(folder: Path, transform: Transform, workload: Workload, workers: int) -> Iterator[Batch]:
    """Ours with torch's workers in the place of our own; the process is not used for anything else."""
    from libraries.workers_dataloader import computed_in_order

    loader.computed_in_order = computed_in_order
    return ours(folder, transform, workload, workers)


def webdataset(folder: Path, transform: Transform, workload: Workload, workers: int) -> Iterator[Batch]:
    import webdataset as wds

    def decoded(sample: dict[str, Any]) -> dict[str, Any]:
        return transform(sample["__key__"], sample[workload.field])

    tars = sorted(map(str, (folder / "tars").glob("*.tar")))
    dataset = wds.WebDataset(tars, shardshuffle=100).shuffle(1000).map(decoded)
    batched = dataset.batched(workload.batch, collation_fn=default_collate)
    return _keyed(wds.WebLoader(batched, batch_size=None, num_workers=workers))


def write_mds(samples: Samples, field: str, folder: Path, shards: int) -> None:
    import_streaming()
    from streaming import MDSWriter

    limit = sum(len(content) for _, content in samples) // shards
    with MDSWriter(out=str(folder / "mds"), columns={"key": "str", "data": "bytes"}, size_limit=limit) as writer:
        for key, content in samples:
            writer.write({"key": key, "data": content})


def mosaic(folder: Path, transform: Transform, workload: Workload, workers: int) -> Iterator[Batch]:
    import_streaming()
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Decoded(StreamingDataset):
        def __getitem__(self, at: Any) -> dict[str, Any]:
            sample = super().__getitem__(at)
            return transform(sample["key"], sample["data"])

    dataset = Decoded(local=str(folder / "mds"), shuffle=True, batch_size=workload.batch)
    yield from _keyed(DataLoader(dataset, batch_size=workload.batch, num_workers=workers))
    clean_stale_shared_memory()


def import_streaming() -> None:
    """Imports `streaming`. Its vision module subclasses torchvision's classes; where that package is missing, empty
    modules stand in for the import, of which a dataset of bytes uses nothing."""
    stand_ins: list[str] = []
    if "streaming" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        parts = ["", ".datasets", ".transforms", ".transforms.functional"]
        stand_ins = [f"torchvision{part}" for part in parts]
        sys.modules |= {name: types.ModuleType(name) for name in stand_ins}
        sys.modules["torchvision.datasets"].__dict__["VisionDataset"] = object
        sys.modules["torchvision.transforms.functional"].__dict__["to_tensor"] = None
    try:
        importlib.import_module("streaming")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def write_chunks(samples: Samples, field: str, folder: Path, shards: int) -> None:
    from litdata.streaming import Cache

    (folder / "chunks").mkdir()
    cache = Cache(str(folder / "chunks"), chunk_size=-(-len(samples) // shards))
    for number, (key, content) in enumerate(samples):
        cache[number] = {"key": key, "data": content}
    cache.done()
    cache.merge()


def litdata(folder: Path, transform: Transform, workload: Workload, workers: int) -> Iterator[Batch]:
    from litdata import StreamingDataLoader, StreamingDataset

    def decoded(sample: dict[str, Any]) -> dict[str, Any]:
        return transform(sample["key"], bytes(sample["data"]))  # it is a view of the chunk

    dataset = StreamingDataset(str(folder / "chunks"), shuffle=True, drop_last=False, transform=decoded)
    loader = StreamingDataLoader(
        dataset, batch_size=workload.batch, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    return _keyed(loader)


def _keyed(loader: Iterable[dict[str, Any]]) -> Iterator[Batch]:
    for batch in loader:
        keys = batch.pop("key")
        batch.pop("__key__", None)  # webdataset adds it again
        yield keys, batch


PROVIDERS = {
    "ours": Provider("bigssl", write_tars, ours),
    "dataloader": Provider("torch", nothing_to_write, dataloader),
    "webdataset": Provider("webdataset", nothing_to_write, webdataset),
    "mosaic": Provider("mosaicml-streaming", write_mds, mosaic),
    "litdata": Provider("litdata", write_chunks, litdata),
}


def available() -> tuple[dict[str, Provider], dict[str, str]]:
    """(providers that can be imported, name -> why of the others)."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # nothing here talks to anyone
    imports = {"mosaic": import_streaming, "litdata": lambda: importlib.import_module("litdata.streaming")}
    missing: dict[str, str] = {}
    for name, load in imports.items():
        try:
            load()
        except Exception as error:  # absent, or broken in whatever way: a benchmark of the rest goes on
            missing[name] = f"{type(error).__name__}: {error}"
    return {name: provider for name, provider in PROVIDERS.items() if name not in missing}, missing


def versions() -> str:
    names = ["numpy", "pillow", "tokenizers", *(provider.package for provider in PROVIDERS.values())]
    found = [name for name in dict.fromkeys(names) if _installed(name)]
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in found)


def _installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
