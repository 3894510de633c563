"""Labelled samples that a network is trained on or judged by: known by number, read from the shards when needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from bigssl.data.errors import DataError, display
from bigssl.data.kinds import decode
from bigssl.data.loading.collate import collate
from bigssl.data.order import rng
from bigssl.data.order.stream import SampleReader
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import column, metadata, samples_at
from bigssl.transfer.inputs import Input
from bigssl.transfer.labelled.fit import announced
from bigssl.transfer.labelled.section import Learning
from bigssl.transfer.team import AgreedError

KEPT = 256 << 20  # bytes of views in memory
Target = Callable[[Sample], Any]
View = Callable[[Sample], Mapping[str, np.ndarray]]


class KeptViews:
    """Samples of an index by number, and their views: kept while all of them take less than `KEPT` bytes. A thread
    reads, so that others are made while a network works on some.

    Args:
        threads: that make views.
    """

    def __init__(self, index: DatasetIndex, view: View, threads: int) -> None:
        self._reader, self._view, self._threads = SampleReader(index), view, threads
        self._worker = ThreadPoolExecutor(1, "views")
        self._kept: dict[int, Mapping[str, np.ndarray]] = {}
        self._coming: dict[int, Future[dict[int, Mapping[str, np.ndarray]]]] = {}
        self._room = KEPT

    def samples(self, numbers: Sequence[int]) -> list[Sample]:
        """In this order; remote ones are fetched together. Raises DataError."""
        return self._worker.submit(self._read, numbers).result()

    def soon(self, numbers: Sequence[int]) -> None:
        """Begins with the views of samples that will be asked for; what is wrong with them is said then."""
        if lacking := sorted({number for number in numbers if number not in self._kept and number not in self._coming}):
            self._coming |= dict.fromkeys(lacking, self._worker.submit(self._made, lacking))

    def views(self, numbers: Sequence[int]) -> list[Mapping[str, np.ndarray]]:
        self.soon(numbers)
        coming = sorted({number for number in numbers if number not in self._kept})
        read = {number: self._coming.pop(number).result()[number] for number in coming}
        for number, view in read.items():
            size = sum(value.nbytes for value in view.values())
            if size <= self._room:
                self._kept[number] = view
                self._room -= size
        return [read[number] if number in read else self._kept[number] for number in numbers]

    def _read(self, numbers: Sequence[int]) -> list[Sample]:
        return [self._reader.read(number) for number in self._reader.ahead(numbers)]

    def _made(self, numbers: Sequence[int]) -> dict[int, Mapping[str, np.ndarray]]:
        samples = self._read(numbers)
        with ThreadPoolExecutor(self._threads) as pool:
            return dict(zip(numbers, pool.map(self._view, samples), strict=True))


@dataclass(frozen=True)
class Examples:
    """The samples of a dataset with what is to be predicted of each.

    Attributes:
        keys: of the samples.
        targets: of each sample, as `target` made it.
        columns: metadata fields of each sample.
        contents: what samples are known by: the texts of inputs of which equal ones are one observation, else the keys.
        numbers: of the samples in the index.
    """

    keys: list[str]
    targets: list[Any]
    columns: Mapping[str, list[str]]
    contents: list[str]
    numbers: Sequence[int]
    views: KeptViews = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.keys)

    def column(self, name: str) -> list[str]:
        """A metadata field that was asked for, of each sample."""
        return self.columns[name]

    def groups(self, item: str | None) -> list[str]:
        """What each sample is of, for standard errors: its value in the metadata field `item`, or its content."""
        return self.contents if item is None else self.columns[item]

    def samples(self, rows: Sequence[int]) -> list[Sample]:
        """These samples, read from the shards. Raises DataError."""
        return self.views.samples([self.numbers[row] for row in rows])

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Collated views [B, ...] of these samples, on the CPU. Raises DataError."""
        found: dict[str, Tensor] = collate(self.views.views([self.numbers[row] for row in rows]))
        return found

    def soon(self, rows: Sequence[int]) -> None:
        """Begins with what `batch` will be asked for, in a thread."""
        self.views.soon([self.numbers[row] for row in rows])

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """All samples in their order, `size` at a time, each made while the one before it is worked on."""
        parts = [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]
        yield from map(self.batch, announced(parts, self.soon))

    def permuted(self, seed: int) -> Examples:
        """The same samples with their targets dealt anew among them: nothing is left to be learnt."""
        order = rng.permutation(len(self), "labels", seed)
        return replace(self, targets=[self.targets[row] for row in order])


def learnt_and_judged(
    bench: Bench, section: Learning, takes: Input, target: Target, item: str | None
) -> tuple[Examples, Examples]:  # fmt: skip
    """What a section learns from, and its queries with the metadata field `item`, if any. A collective; see
    `examples`."""
    train = examples(bench, takes, section.train, limit=section.train_limit, field="train", target=target)
    return train, examples(bench, takes, section.queries, limit=section.query_limit, field="queries", target=target,
                           columns=[] if item is None else [item])  # fmt: skip


def examples(
    bench: Bench, takes: Input, url: str, *, limit: int | None, field: str, target: Target,
    columns: Sequence[str] = (),
) -> Examples:  # fmt: skip
    """The samples of a dataset that `target` makes something of. A collective: each rank reads its share, all have all.

    Args:
        field: that of the section with the `url`, for errors and notes.
        target: of a sample, what is to be predicted (picklable). Raises DataError where it has none.
        columns: metadata fields that are needed.
    Raises:
        AgreedError: a sample without a target or field, or no samples at all.
    """
    index = bench.index(url)
    numbers = bench.numbers(index, limit, field)

    def read() -> list[tuple[int, str, str, Any, list[str]]]:
        found = []
        for number, sample in zip(numbers, samples_at(index, numbers), strict=True):
            meta = [metadata(sample)] if columns else []
            values = [column([sample.key], meta, name)[0] for name in columns]
            found.append((number, sample.key, _content(sample, takes), _target(sample, target), values))
        return found

    rows = [row for part in bench.team.gather(read) for row in part]
    if not rows:
        raise AgreedError(f"{bench.where}.{field}: no samples in {display(url)}")
    found, keys, contents, targets, values = (list(part) for part in zip(*rows, strict=True))
    named = {name: [row[at] for row in values] for at, name in enumerate(columns)}
    threads = 1 if takes.once else min(8, os.cpu_count() or 1)  # a tokenizer is of one thread at a time
    return Examples(keys, targets, named, contents, found, KeptViews(index, takes.view, threads))


def _content(sample: Sample, takes: Input) -> str:
    kinds = decode.FIELDS[takes.modality]
    if not takes.once or not any(kind in sample.fields for kind in kinds):
        return sample.key
    return decode.text(decode.field(sample, kinds))


def _target(sample: Sample, target: Target) -> Any:
    try:
        return target(sample)
    except DataError as error:
        where = "" if sample.key in str(error) else f"shard {sample.shard}, sample {sample.key!r}: "
        raise DataError(f"{where}{error}") from error
