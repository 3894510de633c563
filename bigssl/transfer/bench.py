"""Where the tasks of the scorecard are worked on: features of whole datasets, dealt over ranks, in bounded memory.

A rank encodes its contiguous share of each dataset into a file (`Matrix`), and judges its share of the queries against
all rows, piece by piece. It holds at a time: the networks, one batch, a piece of each of two matrices with their unit
vectors and similarities (`matrix.VALUES` numbers each, 5 × 64 MiB), D × D numbers in float64, and of each sample its
key, its label and, for texts, the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.data.errors import display
from bigssl.data.kinds import decode
from bigssl.data.shards.index import DatasetIndex
from bigssl.transfer.collapse import stored_health
from bigssl.transfer.features import (
    chosen,
    column,
    image_batches,
    metadata,
    network,
    raw,
    samples_at,
    text_encoder,
)
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.matrix import Matrix, Scratch, joined
from bigssl.transfer.team import AgreedError, Team

Encoder = Callable[[Tensor], Tensor]
Task = dict[str, Any]


@dataclass(frozen=True)
class Networks:
    """A trained network and the same one with random weights."""

    trained: PreTrainedModel
    random_net: PreTrainedModel

    def items(self) -> list[tuple[str, PreTrainedModel]]:
        return [("trained", self.trained), ("random_net", self.random_net)]


@dataclass(frozen=True)
class Encoded:
    """Features of a dataset by contender, and of each sample its key and the metadata fields asked for."""

    matrices: dict[str, Matrix]
    keys: list[str]
    columns: dict[str, list[str]]


@dataclass(frozen=True)
class Captions:
    """Different texts with their labels (the same text twice is no second observation), and all different metadata of
    the label and its finer `sub<label>`."""

    texts: list[str]
    labels: list[str]
    meta: list[dict[str, str]]


@dataclass
class Bench:
    """batch: samples of a forward pass. notes: what a reader of the scorecard has to know."""

    team: Team
    scratch: Scratch
    batch: int
    device: str | torch.device
    notes: list[str] = field(default_factory=list)

    def index(self, url: str) -> DatasetIndex:
        """The index of a dataset. A collective, as everything that may fail on one rank."""
        return self.team.each(lambda: DatasetIndex.load(url))

    def numbers(self, index: DatasetIndex, limit: int | None, where: str) -> Sequence[int]:
        """This rank's share of the samples; `where`: the recipe's field, for the note on a limit."""
        everything = chosen(index, limit)
        if len(everything) < len(index):
            note = f"{where}: {len(everything):,} of {len(index):,} samples, drawn by a fixed seed."
            self.notes += [note] if note not in self.notes else []
        share = self.team.share(len(everything))
        return everything[share.start : share.stop]

    def images(self, networks: Networks, url: str, *, size: int, fields: Sequence[str], limit: int | None, where: str
               ) -> Encoded:
        """Encode the pictures of a dataset, by both networks and as raw pixels. A collective."""
        encoders: dict[str, Encoder] = {name: network(model, self.device) for name, model in networks.items()}
        encoders["raw"] = raw
        index = self.index(url)
        numbers = self.numbers(index, limit, where)
        keys: list[str] = []
        columns: dict[str, list[str]] = {name: [] for name in fields}

        def batches() -> Iterator[Mapping[str, Tensor]]:
            for images in image_batches(samples_at(index, numbers), size=size, batch=self.batch):
                keys.extend(images.keys)
                for name, values in columns.items():
                    values += column(images.keys, images.meta, name)
                yield {name: encode(images.pixels) for name, encode in encoders.items()}

        found = self.team.gather(lambda: (self.scratch.store(batches()), keys, columns))
        if not any(part[1] for part in found):
            raise AgreedError(f"{where}: no samples in {display(url)}")
        return Encoded(
            joined([parts for parts, _, _ in found]),
            [key for _, part, _ in found for key in part],
            {name: [value for _, _, part in found for value in part[name]] for name in columns},
        )

    def captions(self, url: str, label: str, *, limit: int | None, where: str) -> Captions:
        """The texts of a dataset. A collective."""
        index = self.index(url)
        numbers = self.numbers(index, limit, where)

        def read() -> tuple[list[tuple[str, str]], list[tuple[tuple[str, str], ...]]]:
            texts: dict[tuple[str, str], None] = {}
            kinds: dict[tuple[tuple[str, str], ...], None] = {}
            for sample in samples_at(index, numbers):
                text, meta = decode.text(decode.field(sample, ("txt",))), metadata(sample)
                texts[text, column([sample.key], [meta], label)[0]] = None
                kinds[tuple((name, str(meta[name])) for name in (label, f"sub{label}") if name in meta)] = None
            return list(texts), list(kinds)

        found = self.team.gather(read)
        texts = dict.fromkeys(pair for part, _ in found for pair in part)
        kinds = dict.fromkeys(kind for _, part in found for kind in part)
        return Captions([text for text, _ in texts], [name for _, name in texts], [dict(kind) for kind in kinds])

    def texts(self, networks: Networks, words: TextInput, texts: Sequence[str]) -> dict[str, Matrix]:
        """Encode texts by both networks. A collective."""
        encoders = {name: text_encoder(model, words, self.device) for name, model in networks.items()}

        def batches() -> Iterator[Mapping[str, Tensor]]:
            mine = self.team.share(len(texts))
            for start in range(mine.start, mine.stop, self.batch):
                part = texts[start : min(start + self.batch, mine.stop)]
                yield {name: encode(part) for name, encode in encoders.items()}

        return joined(self.team.gather(lambda: self.scratch.store(batches())))

    def means(self, matrices: Mapping[str, Matrix]) -> dict[str, Tensor]:
        """The mean row [D] of each matrix. A collective."""

        def sums(matrix: Matrix) -> Tensor:
            found = torch.zeros(matrix.width, dtype=torch.float64)
            for _, piece in matrix.pieces(self.team.share(len(matrix))):
                found += piece.double().sum(0)
            return found

        mine = self.team.each(lambda: {name: sums(matrix) for name, matrix in matrices.items()})
        return {name: (self.team.total(part) / len(matrices[name])).float() for name, part in mine.items()}

    def health(self, matrices: Mapping[str, Matrix]) -> dict[str, dict[str, float]]:
        """`stored_health` of the networks' features, each on a rank of its own. A collective."""
        names = ["trained", "random_net"]
        mine = names[self.team.rank :: self.team.world]
        found = self.team.gather(lambda: {name: stored_health(matrices[name]) for name in mine})
        everything = {name: value for part in found for name, value in part.items()}
        return {name: everything[name] for name in names}

    def hits(self, judge: Callable[[], Tensor]) -> Tensor:
        """The hits of all ranks one after the other, from what `judge` finds for this rank's. A collective."""
        return torch.cat(self.team.gather(judge))
