"""What evaluations judge: networks by name, of an export or as they are while they are trained; and what they make of
data: features with what is known of each sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds.captions import all_captions
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.heads.base import Head
from bigssl.nets.modality.stretches import TIMED, stretch_count
from bigssl.nets.norm import has_batch_norm
from bigssl.transfer.arriving.sizes import prepared_otherwise
from bigssl.transfer.baselines import calibrate_batch_norm, random_network
from bigssl.transfer.features import Views, column, encoder, holds, metadata, read_samples, view_batches
from bigssl.transfer.inputs import Input, exported_input
from bigssl.transfer.leaving import export
from bigssl.transfer.matrix import Matrix
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

CALIBRATION_BATCHES = 8
NORM = "The random network's BatchNorm statistics were set from unlabelled samples that are no queries."
Tensors = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A network by the name under which it is exported.

    Attributes:
        models: "trained", and "random_net": the same with random weights.
        takes: its input.
        width: features of a sample, where it is known before the first one.
        parts: stretches of time of which a sample has features; None: of all of it.
    """

    name: str
    models: dict[str, PreTrainedModel]
    takes: Input
    width: int = 0
    parts: int | None = None

    def in_parts(self, parts: int | None) -> Subject:
        """The same with features of so many stretches of time."""
        if parts is None:
            return self
        return replace(self, width=self.width * stretch_count(self.models["trained"], parts), parts=parts)

    def encoders(self, device: str | torch.device) -> dict[str, Callable[[Mapping[str, Tensor]], Tensor]]:
        """By contender: collated views -> float32 [B, D], on the CPU."""
        return {name: encoder(model, device, self.parts) for name, model in self.models.items()}


def check_parts(seen: Checked, parts: int | None) -> None:
    """Refuses stretches of time of what has none. Raises ConfigError."""
    if parts is not None and (kind := seen.backbone("backbone").modality) not in TIMED:
        seen.refuse("parts", f"the backbone takes {kind}; allowed: of one that takes {' or '.join(TIMED)}, or null")


class Subjects(Protocol):
    """Where networks and heads come from. live: they are being trained: nothing but "trained" is compared, and all
    ranks have to make the same passes, in each of which ZeRO-3 gathers the weights."""

    live: bool
    notes: list[str]

    def subject(self, name: str, *, batch: int, device: str | torch.device) -> Subject: ...

    def head(self, name: str) -> Head: ...

    def heads(self) -> Mapping[str, Head]: ...

    def whole(self, parameter: nn.Parameter) -> nn.Parameter:
        """It, or a copy where this rank may hold a slice alone."""
        ...


class Exported:
    """The networks of an export folder, each loaded once, beside its random twin.

    The twin has fresh weights from the seed. Where it has BatchNorm, the running statistics are first set from
    unlabelled samples that are no queries; the trained network keeps its own. Judged with the statistics of an
    untrained module it would lose for want of bookkeeping.

    Args:
        unlabelled: URLs of shards by backbone that such samples may come from: the first is taken that has any.
    """

    live = False

    def __init__(self, folder: Path, seed: int, unlabelled: Mapping[str, Sequence[str]]) -> None:
        self.folder, self.seed, self._unlabelled = folder, seed, unlabelled
        self.notes: list[str] = []
        self._loaded: dict[str, Subject] = {}
        self._randoms: dict[tuple[str, int], PreTrainedModel] = {}

    def subject(self, name: str, *, batch: int, device: str | torch.device) -> Subject:
        if name not in self._loaded:
            self._loaded[name] = self._load(name, batch, device)
        return self._loaded[name]

    def _load(self, name: str, batch: int, device: str | torch.device) -> Subject:
        folder = self.folder / name
        trained, takes = export.load_backbone(folder), exported_input(folder)
        fresh = self._random(name, trained.config, takes, self.seed, batch, device)
        self.notes += [said] if (said := prepared_otherwise(folder)) else []
        return Subject(name, {"trained": trained, "random_net": fresh}, takes)

    def _random(
        self, name: str, config: PreTrainedConfig, takes: Input, seed: int, batch: int, device: str | torch.device
    ) -> PreTrainedModel:
        fresh = random_network(config, seed)
        indexes = map(DatasetIndex.load, self._unlabelled.get(name, ()) if has_batch_norm(fresh) else ())
        index = next((each for each in indexes if holds(each, decode.FIELDS[takes.modality])), None)
        if index is not None:
            views = view_batches(read_samples(index, CALIBRATION_BATCHES * batch), takes, batch=batch)
            calibrate_batch_norm(fresh, (each.arrays for each in views), device)
            self.notes += [NORM] if NORM not in self.notes else []
        return fresh

    def copy_of(
        self, subject: Subject, contender: str, seed: int, *, batch: int, device: str | torch.device
    ) -> PreTrainedModel:
        """Of its own: of the "trained" network, or for another contender of one with fresh weights by the run's seed +
        `seed`, which is made once. Raises DataError where its weights are not finite."""
        if contender == "trained" or seed == 0:
            model = subject.models["trained" if contender == "trained" else "random_net"]
            for name, value in model.state_dict().items():
                if value.is_floating_point() and not value.isfinite().all():
                    raise DataError(f"backbone {subject.name!r}, {contender}: its {name} is not finite; export a "
                                    "checkpoint from before it diverged")  # fmt: skip
            return copy.deepcopy(model)
        if (subject.name, seed) not in self._randoms:
            config = subject.models["trained"].config
            fresh = self._random(subject.name, config, subject.takes, self.seed + seed, batch, device)
            self._randoms[subject.name, seed] = fresh.cpu()
        return copy.deepcopy(self._randoms[subject.name, seed])

    def head(self, name: str) -> Head:
        return export.load_head(self.folder / "heads" / f"{name}.safetensors")

    def heads(self) -> Mapping[str, Head]:
        return {path.stem: export.load_head(path) for path in sorted((self.folder / "heads").glob("*.safetensors"))}

    def whole(self, parameter: nn.Parameter) -> nn.Parameter:
        return parameter


class Live:
    """The networks of a run while it trains, on the device that they are on.

    Args:
        subjects: by name; the model of each is "trained".
        heads: by name, with whole tensors. A collective.
        gathered: a context in which parameters are whole. A collective.
    """

    live = True

    def __init__(
        self,
        subjects: Iterable[Subject],
        heads: Callable[[], Mapping[str, Head]] = dict,
        gathered: Callable[[list[nn.Parameter]], AbstractContextManager[None]] = lambda parameters: nullcontext(),
    ) -> None:
        self._subjects = {subject.name: subject for subject in subjects}
        self._heads, self._gathered = heads, gathered
        self.notes: list[str] = []

    def subject(self, name: str, *, batch: int, device: str | torch.device) -> Subject:
        return self._subjects[name]

    def head(self, name: str) -> Head:
        return self._heads()[name]

    def heads(self) -> Mapping[str, Head]:
        return self._heads()

    def whole(self, parameter: nn.Parameter) -> nn.Parameter:
        with self._gathered([parameter]), torch.no_grad():
            return nn.Parameter(parameter.detach().float().clone(), requires_grad=False)


@dataclass
class Notes:
    """What is kept of samples beside their features: keys, and columns of the metadata that evaluations ask for.

    lacking: of a field that a sample does not have, what to say of the first such one.
    """

    fields: Sequence[str]
    keys: list[str] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)

    def of(self, batches: Iterable[Views]) -> Iterator[Views]:
        for batch in batches:
            self.keys += batch.keys
            for name in self.fields:
                if name not in self.lacking:
                    try:
                        self.columns.setdefault(name, []).extend(column(batch.keys, batch.meta, name))
                    except DataError as error:
                        self.lacking[name] = str(error)
            yield batch


@dataclass(frozen=True)
class Encoded:
    """Features of a dataset by contender ("trained", "random_net", "raw" where that is a vector), and of each sample
    what it is known by: its key, or the text itself.

    Attributes:
        made: what else was made of it.
    """

    subject: Subject
    matrices: dict[str, Matrix]
    keys: list[str]
    notes: Sequence[Notes]
    made: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` made when it was first asked for under `key`."""
        if key not in self.made:
            self.made[key] = make()
        found: T = self.made[key]
        return found

    def __len__(self) -> int:
        return len(self.keys)

    def groups(self, name: str | None) -> list[str]:
        """What each sample is of, for standard errors: its value in a metadata field, or itself."""
        return self.keys if name is None else self.column(name)

    def column(self, name: str) -> list[str]:
        """A metadata field that the evaluation has among its own, of each sample. Raises AgreedError where one lacks
        it."""
        for part in self.notes:
            if name in part.lacking:
                raise AgreedError(part.lacking[name])
        return [value for part in self.notes for value in part.columns.get(name, ())]


@dataclass(frozen=True)
class Captions:
    """Different texts with their metadata (the same text twice is no second observation): `columns` of each, and the
    different `meta` of all."""

    texts: list[str]
    columns: dict[str, list[str]]
    meta: list[dict[str, str]]

    @classmethod
    def of(cls, parts: Sequence[CaptionsRead], columns: Sequence[str]) -> Captions:
        """From what the ranks have read."""
        rows = list(dict.fromkeys(row for part, _ in parts for row in part))
        kinds = dict.fromkeys(kind for _, part in parts for kind in part)
        values = {name: [row[at] for row in rows] for at, name in enumerate(columns, 1)}
        return cls([row[0] for row in rows], values, [dict(kind) for kind in kinds])


CaptionsRead = tuple[list[tuple[str, ...]], list[tuple[tuple[str, str], ...]]]


def captions_of(samples: Iterable[Sample], columns: Sequence[str], named: Sequence[str]) -> CaptionsRead:
    """(the different texts, each with its `columns`; the different values of the fields `named`). Raises DataError."""
    rows: dict[tuple[str, ...], None] = {}
    kinds: dict[tuple[tuple[str, str], ...], None] = {}
    for sample in samples:
        meta = metadata(sample)
        values = [column([sample.key], [meta], name)[0] for name in columns]
        rows |= dict.fromkeys((text, *values) for text in all_captions(sample))
        kinds[tuple((name, decode.value_name(meta[name])) for name in named if name in meta)] = None
    return list(rows), list(kinds)
