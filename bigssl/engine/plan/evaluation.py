"""Checks of the probe and evaluation sections: they are used hours after the start."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn, Protocol

from bigssl.config.errors import ConfigError, nearest
from bigssl.config.evaluate import Evaluation
from bigssl.config.places import instead
from bigssl.config.recipe import Recipe
from bigssl.data.errors import DataError, display
from bigssl.data.kinds import decode
from bigssl.data.kinds.captions import is_captioned
from bigssl.data.order.stream import is_remote, read_numbers
from bigssl.data.remote.pipes import PIPE
from bigssl.data.sample import Sample
from bigssl.data.shards.index import MANIFEST, DatasetIndex, ShardInfo
from bigssl.nets.norm import has_batch_norm
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head

JUDGED = "that is what is judged"
MOST = 4  # samples of a dataset that are looked at


def load_index(url: str, field: str) -> DatasetIndex:
    """The index of a recipe's `field`; ConfigError with the nearest path where there is none."""
    try:
        return DatasetIndex.load(url)
    except (DataError, OSError, ImportError) as error:
        raise ConfigError(f"{field}: value {display(url)!r}: {error}{_nearest_path(url)}") from None


@contextmanager
def _reading(field: str, url: str) -> Iterator[None]:
    """What is wrong with the data that is read here is wrong with the value of `field`."""
    try:
        yield
    except (DataError, OSError) as error:
        raise ConfigError(f"{field}: value {display(url)!r}: {error}") from None


def _nearest_path(url: str) -> str:
    """Datasets in place of what is none: the parts of their parent (train, val), or those beside a name that is not."""
    return "" if "://" in url or url.startswith(PIPE) else instead(url, lambda path: (path / MANIFEST).is_file())


def evaluated(recipe: Recipe) -> dict[str, Evaluation]:
    """The sections of `probe` and `evaluate`, by field."""
    probed = recipe.probe.sections if recipe.probe is not None else {}
    sections = {f"probe.{name}": section for name, section in probed.items()}
    return sections | {f"evaluate.{name}": section for name, section in (recipe.evaluate or {}).items()}


def check_evaluation(recipe: Recipe, towers: Mapping[str, Tower], heads: Mapping[str, Head]) -> None:
    """Shards, backbones, metadata fields and heads that `probe` and `evaluate` name.

    Raises:
        ConfigError: field, value, what is allowed.
    """
    check_sections(evaluated(recipe), towers, heads, Shelves())


def check_sections(
    sections: Mapping[str, Evaluation], towers: Mapping[str, Tower], heads: Mapping[str, Head], looked: Shelves
) -> None:
    """The same of sections by the recipe field of each. looked: what other checks have read. Raises ConfigError."""
    for where, section in sections.items():
        section.check(Checked(where, section, towers, heads, looked))
    _check_unlabelled(sections, towers, looked)


class Viewer(Protocol):
    """What a backbone takes (`bigssl.transfer.inputs.Input`). `view` raises DataError for what is none of it."""

    modality: ClassVar[str]

    def view(self, sample: Sample) -> Any: ...


class Shelves:
    """A few samples of each dataset that is judged, each read and viewed once: sections share theirs as a rule."""

    def __init__(self) -> None:
        self._samples: dict[str, list[Sample]] = {}
        self._viewed: set[tuple[str, Viewer]] = set()

    def samples(self, where: str, url: str) -> list[Sample]:
        """Of the dataset at `url`, the value of the recipe field `where`. ConfigError where there are none."""
        if url not in self._samples:
            index = load_index(url, where)
            with _reading(where, url):
                self._samples[url] = list(few_samples(index))
        return self._samples[url]

    def view(self, where: str, url: str, takes: Viewer) -> None:
        """Can the samples be seen as a backbone takes them? ConfigError where one cannot."""
        if (url, takes) not in self._viewed:
            with _reading(where, url):
                for sample in self.samples(where, url):
                    takes.view(sample)
            self._viewed.add((url, takes))


class Checked:
    """What the check of an evaluation may ask; a field is one of its section, whose value it looks at.

    Every method raises ConfigError: field, value, what is allowed, nearest match.
    """

    def __init__(
        self, where: str, section: Evaluation, towers: Mapping[str, Tower], heads: Mapping[str, Head],
        looked: Shelves | None = None,
    ) -> None:  # fmt: skip
        """where: the section's field in the recipe. looked: what the checks of other sections have read."""
        self._where, self._section, self._towers, self._heads = where, section, towers, heads
        self._looked = looked or Shelves()

    def refuse(self, field: str, why: str) -> NoReturn:
        """ConfigError about the value of a field."""
        raise ConfigError(f"{self._where}.{field}: value {getattr(self._section, field)!r}: {why}")

    def backbone(self, field: str, *modalities: str) -> Tower:
        """The backbone, whose modality has to be one of `modalities`; without them, any."""
        name = getattr(self._section, field)
        kinds = {each: tower.modality for each, tower in self._towers.items()}
        fitting = sorted(each for each, kind in kinds.items() if not modalities or kind in modalities)
        if name not in fitting:
            kind = " or ".join(modalities) + " " if modalities else ""
            allowed = ", ".join(fitting) or f"none, there is no {kind}backbone"
            raise ConfigError(f"{self._where}.{field}: no {kind}backbone {name!r}; allowed: {allowed}"
                              f"{nearest(name, fitting)}")  # fmt: skip
        return self._towers[name]

    def head(self, field: str, kinds: str | Iterable[str], roles: Mapping[str, str]) -> None:
        """Does this objective export such a head, and is it that of the backbones that are judged with it?

        Args:
            kinds: what it may be (`Head.kind`).
            roles: the section's field of the backbone in each role of the head.
        """
        allowed_kinds = [kinds] if isinstance(kinds, str) else sorted(kinds)
        name = getattr(self._section, field)
        fitting = sorted(each for each, head in self._heads.items()
                         if head.kind in allowed_kinds and roles.keys() <= head.backbones.keys())  # fmt: skip
        if name not in fitting:
            kind = " or ".join(allowed_kinds)
            allowed = ", ".join(fitting) or f"none: this objective exports no head of the kind {kind}"
            raise ConfigError(f"{self._where}.{field}: value {name!r}; allowed: {allowed}{nearest(name, fitting)}")
        for role, backbone in roles.items():
            given, own = getattr(self._section, backbone), self._heads[name].backbones[role]
            if given != own:
                raise ConfigError(
                    f"{self._where}.{backbone}: value {given!r}; allowed: {own}, on which head {name!r} is trained"
                )

    def has_head(self, fits: Callable[[Head], bool]) -> bool:
        """Whether this objective exports one that does."""
        return any(map(fits, self._heads.values()))

    def samples(self, field: str, takes: Viewer, *metadata: str) -> None:
        """Do a few samples have what a backbone `takes`, and the metadata that the fields `metadata` name?"""
        url, where = getattr(self._section, field), f"{self._where}.{field}"
        samples = self._looked.samples(where, url)
        for sample in samples:
            if takes.modality != "text" or not is_captioned(sample):
                _check_field(where, url, sample, decode.FIELDS[takes.modality], JUDGED)
        for sample in samples:
            self._has(where, url, sample, metadata)
        self._looked.view(where, url, takes)

    def _has(self, where: str, url: str, sample: Sample, metadata: Sequence[str]) -> None:
        wanted = {name: value for name in metadata if (value := getattr(self._section, name)) is not None}
        if not wanted:
            return
        with _reading(where, url):
            there = sorted(decode.meta(decode.field(sample, ("json",))))
        for name, value in wanted.items():
            if value not in there:
                raise ConfigError(
                    f"{self._where}.{name}: value {value!r} is not in the metadata of {display(url)} (sample "
                    f"{sample.key}); allowed: {', '.join(there)}{nearest(value, there)}"
                )

    def apart(self, field: str) -> None:
        """Are the shards that are learnt from others than those that are judged?"""
        refuse_shared(f"{self._where}.{field}", getattr(self._section, field), f"{self._where}.queries",
                      self._section.queries)  # fmt: skip

    def readable(self, field: str, read: Callable[[Sample], Any]) -> None:
        """Do a few samples hold what `read` makes of one? It raises DataError."""
        url, where = getattr(self._section, field), f"{self._where}.{field}"
        for sample in self._looked.samples(where, url):
            with _reading(where, url):
                read(sample)

    def documents(self, field: str) -> None:
        """Are a few samples documents?"""
        url, where = getattr(self._section, field), f"{self._where}.{field}"
        for sample in self._looked.samples(where, url):
            with _reading(where, url):
                decode.running_text(sample)

    def neighbours(self, field: str) -> None:
        """Does the bank have `k` samples, within its limit?"""
        url, k, limit = (getattr(self._section, name) for name in (field, "k", f"{field}_limit"))
        index = load_index(url, f"{self._where}.{field}")
        most = min(len(index), limit or len(index))
        if k > most:
            there = f"the samples of the bank, {len(index)} in {display(url)}"
            raise ConfigError(f"{self._where}.k: value {k}; allowed: <= "
                              + (there if most == len(index) else f"{field}_limit, {most}"))  # fmt: skip

    def at_least(self, field: str, least: int, why: str) -> None:
        """Does a dataset hold as many samples? `why` it has to, in words."""
        count = len(load_index(getattr(self._section, field), f"{self._where}.{field}"))
        if count < least:
            self.refuse(field, f"it holds {count} sample{'s' * (count != 1)}; allowed: >= {least}, {why}")

    def at_most(self, field: str, most: int, what: str) -> None:
        """Is a number that is given no greater than `most`, which is `what` in words?"""
        value = getattr(self._section, field)
        if value is not None and value > most:
            raise ConfigError(f"{self._where}.{field}: value {value}; allowed: <= {most}, {what}")


def few_samples(index: DatasetIndex) -> Iterator[Sample]:
    """Some from all over a dataset; of a remote one its first, which are fetched together. Raises DataError."""
    count = len(index)
    spread = sorted({n * count // MOST for n in range(MOST)})
    return read_numbers(index, range(min(MOST, count)) if is_remote(index) else spread)


def _check_unlabelled(sections: Mapping[str, Evaluation], towers: Mapping[str, Tower], looked: Shelves) -> None:
    """The random twin of a network with BatchNorm takes its statistics from samples that are not judged."""
    offered: dict[str, list[tuple[str, str]]] = {}
    for where, section in sections.items():
        for backbone, field in section.unlabelled().items() if where.startswith("evaluate.") else ():
            offered.setdefault(backbone, []).append((f"{where}.{field}", getattr(section, field)))
    for backbone, shards in offered.items():
        kinds = decode.FIELDS[towers[backbone].modality]
        if not has_batch_norm(towers[backbone].model):
            continue
        samples = [looked.samples(where, url)[0] for where, url in shards]
        if samples and not any(kind in sample.fields for sample in samples for kind in kinds):
            need = f"the BatchNorm of the random twin of {backbone!r} is set from them"
            _check_field(*shards[0], samples[0], kinds, need)


def refuse_shared(train_field: str, train: str, test_field: str, test: str) -> None:
    """What was learnt by heart would be asked again. Raises ConfigError where two datasets share a shard."""
    known = {mark for shard in load_index(train, train_field).shards for mark in _marks(shard)}
    asked = load_index(test, test_field).shards
    if both := [shard.name for shard in asked if known.intersection(_marks(shard))]:
        raise ConfigError(f"{test_field}: value {display(test)!r}: {len(both)} of {len(asked)} shards are also in "
                          f"{train_field} ({both[0]}); allowed: others (`bigssl shards split` makes such parts)"
        )  # fmt: skip


def refuse_seen(recipe: Recipe, indexes: Mapping[str, Iterable[DatasetIndex]]) -> None:
    """Training on what is judged would flatter the run.

    Args:
        indexes: the datasets of each source.
    Raises:
        ConfigError: shards of a `queries` field are, by checksum or by place, among those of the sources.
    """
    trained: dict[str, str] = {}
    for source, datasets in indexes.items():
        for index in datasets:
            trained |= {mark: source for shard in index.shards for mark in _marks(shard)}
    for where, section in evaluated(recipe).items():
        shards = load_index(section.queries, f"{where}.queries").shards
        seen = {shard.name: trained[mark] for shard in shards for mark in _marks(shard) if mark in trained}
        if seen:
            name, source = next(iter(seen.items()))
            raise ConfigError(
                f"{where}.queries: value {display(section.queries)!r}: {len(seen)} of {len(shards)} shards are trained "
                f"on ({name} in data.sources.{source}); allowed: shards that no source reads (`bigssl shards split` "
                "makes such parts)"
            )


def _marks(shard: ShardInfo) -> list[str]:
    """What two shards that hold the same have in common; a sequential source has no checksums."""
    place = shard.url if "://" in shard.url else os.path.realpath(shard.url)
    return [mark for mark in (shard.checksum, place) if mark]


def _check_field(field: str, url: str, sample: Sample, kinds: Sequence[str], why: str) -> None:
    if not any(kind in sample.fields for kind in kinds):
        there = ", ".join(sorted(sample.fields)) or "nothing"
        raise ConfigError(
            f"{field}: value {display(url)!r}: sample {sample.key} has {there}; allowed: shards with "
            f"{' or '.join(kinds)} ({why})"
        )
