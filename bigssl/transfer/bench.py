"""Where evaluations are worked on: features of whole datasets, dealt over ranks, in bounded memory.

A rank encodes its contiguous share of each dataset into a file (`Matrix`), and judges its share of the queries against
all rows, piece by piece. It holds at a time: the networks, one batch, a piece of each of two matrices with their unit
vectors and similarities (`matrix.VALUES` numbers each, 5 × 64 MiB), D × D numbers in float64, and of each sample its
key, the metadata that an evaluation asks for and, for texts, the text.

During training the same evaluations work on few samples: a rank then keeps its prepared samples and all features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from bigssl.data.errors import display
from bigssl.data.kinds import decode
from bigssl.data.shards.index import DatasetIndex
from bigssl.transfer.collapse import stored_health
from bigssl.transfer.features import RAW_SIDE, ImageBatch, chosen, column, image_batches, metadata, raw, samples_at
from bigssl.transfer.inputs import ImageInput
from bigssl.transfer.matrix import Matrix, Part, Store, joined
from bigssl.transfer.subjects import Captions, Encoded, Notes, Subject, Subjects, Tensors
from bigssl.transfer.team import AgreedError, Team

T = TypeVar("T")
R = TypeVar("R")
RAW = f"Raw pixels are those of pictures at most {RAW_SIDE} pixels a side."


@dataclass
class Bench:
    """What an evaluation works with.

    Attributes:
        subjects: where networks and heads come from.
        seed: of the run.
        fields: metadata fields that any evaluation asks for.
        where, batch: of the evaluation at work: its field in the recipe, and its samples of a forward pass.
        notes: what a reader of the scorecard has to know.
        health: {backbone: {contender: {std, rankme}}} of the banks that were looked at.
        kept: what the evaluations read and prepared, where it may stay in memory.
        rehearsal: no forward pass is made: features are zeros.
    """

    team: Team
    store: Store
    subjects: Subjects
    device: str | torch.device
    seed: int = 0
    fields: Sequence[str] = ()
    where: str = ""
    batch: int = 256
    notes: list[str] = field(default_factory=list)
    health: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    kept: dict[Any, Any] = field(default_factory=dict)
    encoded: dict[Any, Encoded] = field(default_factory=dict)
    rehearsal: bool = False

    def at(self, where: str, batch: int) -> Bench:
        """The same for an evaluation."""
        return replace(self, where=where, batch=batch)

    def again(self) -> Bench:
        """The same for networks that have changed; what was read is kept."""
        return replace(self, encoded={}, health={}, rehearsal=False)

    @property
    def live(self) -> bool:
        return self.subjects.live

    def note(self, text: str) -> None:
        self.notes += [] if text in self.notes else [text]

    # What there is. Collectives, as everything that may fail on one rank.

    def subject(self, name: str, kind: str | None = None) -> Subject:
        """The network of that name. Raises AgreedError where it is not of the `kind` that is needed."""
        found = self.team.each(lambda: self.subjects.subject(name, batch=self.batch, device=self.device))
        if kind not in (None, found.kind):
            raise AgreedError(f"{self.where}: backbone {name!r} takes {found.kind}s; allowed: one that takes {kind}s")
        return found

    def head(self, name: str) -> Tensors:
        return self.team.each(lambda: self.subjects.head(name))

    def index(self, url: str) -> DatasetIndex:
        return self.team.each(lambda: DatasetIndex.load(url))

    def numbers(self, index: DatasetIndex, limit: int | None, field: str) -> Sequence[int]:
        """This rank's share of the samples; `field`: that of the section, for the note on a limit."""
        everything = chosen(index, limit)
        if len(everything) < len(index):
            self.note(f"{self.where}.{field}: {len(everything):,} of {len(index):,} samples, drawn by a fixed seed.")
        share = self.team.share(len(everything))
        return everything[share.start : share.stop]

    def read(self, key: Any, make: Callable[[], Iterable[T]]) -> Iterable[T]:
        """What `make` reads and prepares on this rank. While a network trains, it is kept under `key` and the ranks
        agree on it before any pass: one that cannot read must not leave the others in a pass. A collective."""
        if not self.live:
            return make()
        if key not in self.kept:
            self.kept[key] = self.team.each(lambda: list(make()))
        found: list[T] = self.kept[key]
        return found

    # Forward passes.

    def passes(self, items: Iterable[T], run: Callable[[T], R], blank: Callable[[T], R]) -> Iterator[R]:
        """What `run`, a forward pass, makes of each item. While a network trains, a collective: ranks with fewer items
        make passes in vain. blank: what stands for it in a rehearsal."""
        if self.rehearsal or not self.live:
            yield from map(blank if self.rehearsal else run, items)
            return
        mine = list(items)
        counts = self.team.gather(lambda: len(mine))
        spare = mine[:1]
        if 0 in counts:
            spare = next((part for part in self.team.gather(lambda: spare) if part), [])
        for number in range(max(counts)):
            if number < len(mine):
                yield run(mine[number])
            else:
                run(spare[0])

    def encode(self, subject: Subject, url: str, *, limit: int | None, field: str, columns: Sequence[str]) -> Encoded:
        """Features of the pictures or texts of a dataset, whichever the network takes. A collective.

        Args:
            field: that of the section with the `url`, for errors and notes.
            columns: metadata fields that are needed. Texts are told apart by them.
        """
        texts = subject.kind == "text"
        key = (subject.name, url, limit, *(columns if texts else ()))
        if key not in self.encoded:
            encode = partial(self._texts, columns=columns) if texts else self._pictures
            self.encoded[key] = encode(subject, url, limit, field)
        return self.encoded[key]

    def _pictures(self, subject: Subject, url: str, limit: int | None, field: str) -> Encoded:
        batches = self.pictures(subject, url, limit, field)
        notes, baseline = Notes(self.fields), {} if self.live else {"raw": raw}
        made = self.team.gather(
            lambda: (self._stored(subject, notes.of(batches), lambda images: images.pixels, baseline), notes)
        )
        keys = [key for _, part in made for key in part.keys]
        if not keys:
            raise AgreedError(f"{self.where}.{field}: no samples in {display(url)}")
        return Encoded(subject, joined([parts for parts, _ in made]), keys, [part for _, part in made])

    def _stored(
        self, subject: Subject, items: Iterable[T], inputs: Callable[[T], Any],
        baseline: Mapping[str, Callable[[Any], Tensor]],
    ) -> Mapping[str, Part]:  # fmt: skip
        """Features of this rank's items by contender; `inputs`: what a network takes of an item."""
        encoders = {**subject.encoders(self.device), **baseline}

        def encode(item: T) -> dict[str, Tensor]:
            given = inputs(item)
            return {name: make(given) for name, make in encoders.items()}

        def blank(item: T) -> dict[str, Tensor]:
            return {"trained": torch.zeros(len(inputs(item)), subject.width)}

        return self.store.store(self.passes(items, encode, blank))

    def pictures(self, subject: Subject, url: str, limit: int | None, field: str) -> Iterable[ImageBatch]:
        """This rank's pictures of a dataset, as the network takes them. A collective."""
        assert isinstance(subject.takes, ImageInput)
        index, size = self.index(url), subject.takes.size
        if size > RAW_SIDE:
            self.note(RAW)
        numbers = self.numbers(index, limit, field)
        make = partial(image_batches, size=size, batch=self.batch)
        return self.read((url, limit, self.batch, size), lambda: make(samples_at(index, numbers)))

    def _texts(self, subject: Subject, url: str, limit: int | None, field: str, columns: Sequence[str]) -> Encoded:
        found = self.captions(url, columns, limit=limit, field=field)
        if not found.texts:
            raise AgreedError(f"{self.where}.{field}: no samples in {display(url)}")
        notes = Notes(columns, columns=found.columns)
        return Encoded(subject, self.texts(subject, found.texts), found.texts, [notes])

    def texts(self, subject: Subject, texts: Sequence[str]) -> dict[str, Matrix]:
        """Features of texts by contender. A collective."""
        mine = self.team.share(len(texts))
        parts = (texts[at : min(at + self.batch, mine.stop)] for at in range(mine.start, mine.stop, self.batch))
        return joined(self.team.gather(lambda: self._stored(subject, parts, lambda part: part, {})))

    def captions(self, url: str, columns: Sequence[str], *, limit: int | None, field: str, also: Sequence[str] = ()
                 ) -> Captions:
        """The different texts of a dataset. A collective.

        Args:
            columns: metadata fields by which equal texts differ, too.
            also: of `meta`, further fields where a sample has them.
        """
        key = ("captions", url, limit, *columns, *also)
        if key not in self.kept:
            self.kept[key] = self._captions(url, columns, limit, field, [*columns, *also])
        found: Captions = self.kept[key]
        return found

    def _captions(self, url: str, columns: Sequence[str], limit: int | None, field: str, named: Sequence[str]
                  ) -> Captions:
        index = self.index(url)
        numbers = self.numbers(index, limit, field)

        def read() -> tuple[list[tuple[str, ...]], list[tuple[tuple[str, str], ...]]]:
            rows: dict[tuple[str, ...], None] = {}
            kinds: dict[tuple[tuple[str, str], ...], None] = {}
            for sample in samples_at(index, numbers):
                text, meta = decode.text(decode.field(sample, ("txt",))), metadata(sample)
                rows[(text, *(column([sample.key], [meta], name)[0] for name in columns))] = None
                kinds[tuple((name, str(meta[name])) for name in named if name in meta)] = None
            return list(rows), list(kinds)

        found = self.team.gather(read)
        rows = list(dict.fromkeys(row for part, _ in found for row in part))
        kinds = dict.fromkeys(kind for _, part in found for kind in part)
        texts = [row[0] for row in rows]
        values = {name: [row[at] for row in rows] for at, name in enumerate(columns, 1)}
        return Captions(texts, values, [dict(kind) for kind in kinds])

    # What the ranks make of features together.

    def means(self, matrices: Mapping[str, Matrix]) -> dict[str, Tensor]:
        """The mean row [D] of each matrix. A collective."""

        def sums(matrix: Matrix) -> Tensor:
            found = torch.zeros(matrix.width, dtype=torch.float64)
            for _, piece in matrix.pieces(self.team.share(len(matrix))):
                found += piece.double().sum(0)
            return found

        mine = self.team.each(lambda: {name: sums(matrix) for name, matrix in matrices.items()})
        return {name: (self.team.total(part) / len(matrices[name])).float() for name, part in mine.items()}

    def look_at(self, bank: Encoded) -> None:
        """Notes the health of a bank's features, each network's on a rank of its own. A collective."""
        if bank.subject.name in self.health:
            return
        names = list(bank.subject.models)
        mine = names[self.team.rank :: self.team.world]
        found = self.team.gather(lambda: {name: stored_health(bank.matrices[name]) for name in mine})
        everything = {name: value for part in found for name, value in part.items()}
        self.health[bank.subject.name] = {name: everything[name] for name in names}

    def hits(self, judge: Callable[[], Tensor]) -> Tensor:
        """The hits of all ranks one after the other, from what `judge` finds for this rank's. A collective."""
        return torch.cat(self.team.gather(judge))
