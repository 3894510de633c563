"""Where evaluations are worked on: features of whole datasets, dealt over ranks, in bounded memory.

A rank encodes its contiguous share of each dataset into a file (`Matrix`), and judges its share of the queries against
all rows, piece by piece. It holds at a time: the networks, one batch, a piece of each of two matrices with their unit
vectors and similarities (`matrix.VALUES` numbers each, 5 × 64 MiB), D × D numbers in float64, and of each sample its
key, the metadata that an evaluation asks for and, for texts, the text. n-grams of raw texts are counted once, into
files, and read in pieces of 32 MiB; what they weigh takes `bags.WIDTH` numbers (`bigssl.transfer.bags`).

During training the same evaluations work on few samples: a rank then keeps its prepared samples and all features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.config.evaluate import Evaluation
from bigssl.data.errors import display
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.heads.base import Head
from bigssl.transfer.bags import Bags, Grams, StoredRows, TfIdf, counted
from bigssl.transfer.collapse import Checkup, NotFinite, sampled_health, stored_health, text_health
from bigssl.transfer.cosines import Centred, Vectors
from bigssl.transfer.features import Views, chosen, samples_at, text_batches, view_batches
from bigssl.transfer.inputs import INPUTS, Input, TextInput
from bigssl.transfer.matrix import Matrix, Store, joined
from bigssl.transfer.scores import RAW, ScoreRow
from bigssl.transfer.subjects import Captions, Encoded, Exported, Notes, Subject, Subjects, captions_of
from bigssl.transfer.team import AgreedError, Team, named

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Bench:
    """What an evaluation works with.

    Attributes:
        subjects: where networks and heads come from.
        seed: of the run.
        fields: metadata fields that any evaluation asks for.
        where, batch: of the evaluation at work: its field in the recipe, and its samples of a forward pass.
        notes: what a reader of the scorecard has to know.
        checkup: the health of features.
        kept: what the evaluations read and prepared, where it may stay in memory.
        rehearsal: no forward pass is made: features are zeros.
        out: folder of the scorecard or of the run, in which networks and pictures may be kept; None: none is kept.
        step: of the run, after which networks are judged.
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
    checkup: Checkup = field(default_factory=Checkup)
    kept: dict[Any, Any] = field(default_factory=dict)
    encoded: dict[Any, Encoded] = field(default_factory=dict)
    rehearsal: bool = False
    out: Path | None = None
    step: int = 0

    def at(self, where: str, batch: int) -> Bench:
        """The same for an evaluation."""
        return replace(self, where=where, batch=batch)

    def again(self, step: int) -> Bench:
        """The same for networks that have changed, after a `step`; what was read is kept."""
        return replace(self, encoded={}, checkup=Checkup(), rehearsal=False, step=step)

    def rows(self, where: str, sections: Mapping[str, Evaluation]) -> Iterator[tuple[str, ScoreRow]]:
        """What the evaluations of a section `where` of the recipe find, by NAME, or NAME/ROW where one has several
        rows. A collective, at each step."""
        for name, section in sections.items():
            for score in section.run(self.at(f"{where}.{name}", section.batch)):
                yield f"{name}/{score.row}" if score.row else name, score

    @property
    def live(self) -> bool:
        return self.subjects.live

    def note(self, text: str) -> None:
        self.notes += [] if text in self.notes else [text]

    # What there is. Collectives, as everything that may fail on one rank.

    def subject(self, name: str, modality: str | None = None) -> Subject:
        """The network of that name. Raises AgreedError where it is not of the `modality` that is needed."""
        found = self.team.each(lambda: self.subjects.subject(name, batch=self.batch, device=self.device))
        if modality not in (None, found.takes.modality):
            raise AgreedError(f"{self.where}: backbone {name!r} takes {found.takes.plural}; allowed: one that takes "
                              f"{INPUTS[str(modality)].plural}")  # fmt: skip
        return found

    def network(self, subject: Subject, contender: str, seed: int) -> PreTrainedModel:
        """A network to train, on the device: a copy of the weights of "trained", or for another contender a
        "random_net" of fresh weights by the seed (0: that of the subject). Raises DataError. No collective."""
        assert isinstance(self.subjects, Exported)  # while a network trains, none is trained beside it
        made = self.subjects.copy_of(subject, contender, seed, batch=self.batch, device=self.device)
        return made.to(self.device)  # type: ignore[arg-type]

    def head(self, name: str) -> Head:
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
        """Features of a dataset, of whatever the network takes. A collective.

        Args:
            field: that of the section with the `url`, for errors and notes.
            columns: metadata fields that are needed. By them, too, equal contents are told apart that would else be
                one observation (`Input.once`).
        """
        key = (subject.name, subject.parts, url, limit, *(columns if subject.takes.once else ()))
        if key not in self.encoded:
            if subject.takes.once:
                found = self.captions(url, columns, limit=limit, field=field)
                keys, notes = found.texts, [Notes(columns, columns=found.columns)]
                matrices = self.texts(subject, keys)
            else:
                mine = Notes(self.fields)
                matrices = self._features(subject, mine.of(self.views(subject.takes, url, limit, field)))
                notes = self.team.gather(lambda: mine)
                keys = [key for part in notes for key in part.keys]
            if not keys:
                raise AgreedError(f"{self.where}.{field}: no samples in {display(url)}")
            self.encoded[key] = Encoded(subject, matrices, keys, notes)
        return self.encoded[key]

    def views(self, takes: Input, url: str, limit: int | None, field: str) -> Iterable[Views]:
        """This rank's samples of a dataset, as a network takes them. A collective."""
        index = self.index(url)
        if takes.reduced:
            self.note(takes.reduced)
        numbers = self.numbers(index, limit, field)
        return self.read((url, limit, self.batch, takes),
                         lambda: view_batches(samples_at(index, numbers), takes, batch=self.batch))  # fmt: skip

    def texts(self, subject: Subject, texts: Sequence[str]) -> dict[str, Matrix]:
        """Features of texts by contender. A collective."""
        takes, mine = subject.takes, self.team.share(len(texts))
        assert isinstance(takes, TextInput)
        batches = self.read((subject.name, self.batch, *texts),
                            lambda: text_batches(texts[mine.start : mine.stop], takes, batch=self.batch))  # fmt: skip
        return self._features(subject, batches)

    def _features(self, subject: Subject, batches: Iterable[Views]) -> dict[str, Matrix]:
        """Features by contender of the batches of all ranks. A collective."""
        encoders, odd = subject.encoders(self.device), NotFinite()

        def encode(views: Views) -> dict[str, Tensor]:
            with nullcontext() if self.live else named(f"{self.where}: features of {subject.name}"):
                found = {name: make(views.arrays) for name, make in encoders.items()}
            raws = {} if len(encoders) == 1 else subject.takes.raws(views.arrays)  # one alone is not compared
            return found | {RAW + words: rows for words, rows in raws.items()}

        def blank(views: Views) -> dict[str, Tensor]:
            return {"trained": torch.zeros(len(views.keys), subject.width)}

        matrices = self.stored(odd.among(self.passes(batches, encode, blank)))
        self.team.gather(partial(odd.refuse, self.where, subject.name))
        self.look_at(subject, matrices)
        return matrices

    def stored(self, rows: Iterator[dict[str, Tensor]]) -> dict[str, Matrix]:
        """Vectors of all ranks by contender, one below the other. A collective."""
        return joined(self.team.gather(lambda: self.store.store(rows)))

    def captions(self, url: str, columns: Sequence[str], *, limit: int | None, field: str, also: Sequence[str] = ()
                 ) -> Captions:
        """The different texts of a dataset. A collective.

        Args:
            columns: metadata fields by which equal texts differ, too.
            also: of `meta`, further fields where a sample has them.
        """
        key = ("captions", url, limit, tuple(columns), tuple(also))
        if key not in self.kept:
            self.kept[key] = self._captions(url, columns, limit, field, [*columns, *also])
        found: Captions = self.kept[key]
        return found

    def _captions(self, url: str, columns: Sequence[str], limit: int | None, field: str, named: Sequence[str]
                  ) -> Captions:
        index = self.index(url)
        numbers = self.numbers(index, limit, field)

        found = self.team.gather(lambda: captions_of(samples_at(index, numbers), columns, named))
        return Captions.of(found, columns)

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

    def contenders(self, bank: Encoded) -> dict[str, Callable[[Encoded], Vectors]]:
        """What is compared: a dataset's rows by contender, without the mean of the bank. A collective, as are those
        that make the rows."""
        takes, means = bank.subject.takes, self.means(bank.matrices)
        found: dict[str, Callable[[Encoded], Vectors]] = {
            name: partial(_centred, name, mean, self.device) for name, mean in means.items()}
        for grams in [] if self.live else takes.bags():
            weights = self._weights(grams, bank)
            if weights.empty:
                self.note(f"{self.where}.bank: nothing to compare with by {grams.name}: the texts hold none.")
                continue
            found[RAW + grams.name] = partial(self._bags, grams, weights)
            looked = partial(text_health, self._bags(grams, weights, bank))
            self.checkup.look(self.team, bank.subject.name, len(bank), {grams.name: looked})
        return {name: found[name] for name in sorted(found, key=lambda name: (name == "trained", name != "random_net"))}

    # Of texts, each made once. Collectives.

    def _counts(self, grams: Grams, of: Encoded) -> StoredRows:
        return of.once(("counts", grams.name), lambda: counted(grams, of.keys, self.team, self.store))

    def _weights(self, grams: Grams, bank: Encoded) -> TfIdf:
        return bank.once(("weights", grams.name), lambda: TfIdf.of(self._counts(grams, bank), self.team))

    def _bags(self, grams: Grams, weights: TfIdf, of: Encoded) -> Bags:
        counts = self._counts(grams, of)
        return of.once(("bags", grams.name, id(weights)), lambda: Bags.of(counts, weights, self.team, self.store))

    def look_at(self, subject: Subject, matrices: Mapping[str, Matrix]) -> None:
        """Notes the health of features where no larger dataset was looked at. A collective."""
        networks = {name: partial(stored_health, matrices[name]) for name in subject.models}
        raws = {name.removeprefix(RAW): partial(sampled_health, matrix) for name, matrix in matrices.items()
                if name not in networks}  # fmt: skip
        self.checkup.look(self.team, subject.name, len(matrices["trained"]), networks | raws)

    def hits(self, judge: Callable[[], Tensor]) -> Tensor:
        """The hits of all ranks one after the other, from what `judge` finds for this rank's. A collective."""
        return torch.cat(self.team.gather(judge))


def _centred(name: str, mean: Tensor, device: str | torch.device, of: Encoded) -> Centred:
    return Centred(of.matrices[name], mean, device)
