"""What a dataset holds, as far as a first recipe asks: what there is to learn from, how large, and which labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds.captions import all_captions, is_captioned
from bigssl.data.kinds.pictures import as_stored
from bigssl.data.order.stream import is_remote, read_numbers
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.classes import LABEL
from bigssl.nets.modality.pixels import COLOURS
from bigssl.transfer.inputs import INPUTS

MOST, FEW = 2000, 64  # samples that are looked at, where these bytes allow more than FEW:
BYTES = 1 << 28
RUNS = 8  # of neighbours among remote samples
CHARACTERS = 2048  # of a text whose tokens are counted: more than a first network takes
CLASSES = range(2, 101)  # values of a field that may be a label


class Measures(NamedTuple):
    """Of one sample: numbers by name, and its text."""

    numbers: dict[str, float]
    text: str = ""


def _picture(sample: Sample) -> Measures:
    """Of deep ones also the values between which all but 1 % of their pixels lie."""
    data = decode.field(sample, decode.IMAGES)
    stored = as_stored(data)
    found: dict[str, float] = {"side": min(stored.width, stored.height), "channels": 1 if stored.grey else COLOURS}
    if stored.deep:
        low, high = np.percentile(decode.grey(data), (0.5, 99.5)).tolist()
        found |= {"darkest": low, "brightest": high}
    return Measures(found)


def _text(sample: Sample) -> Measures:
    text = " ".join(all_captions(sample)) if is_captioned(sample) else decode.running_text(sample)
    return Measures({"characters": len(text), "letters": sum(map(str.isalnum, text[:CHARACTERS]))}, text[:CHARACTERS])


def _series(sample: Sample) -> Measures:
    steps, channels = decode.series(decode.field(sample, decode.FIELDS["series"]), non_finite="keep").shape
    return Measures({"steps": steps, "channels": channels})


def _sound(sample: Sample) -> Measures:
    values, rate = decode.audio(decode.field(sample, decode.AUDIO))
    return Measures({"samples": len(values), "rate": rate})


MEASURED: dict[str, Callable[[Sample], Measures]] = {
    "image": _picture, "text": _text, "series": _series, "audio": _sound,
}  # fmt: skip
"""By modality, what is measured of a sample. Where it has none of it, this is a DataError."""


@dataclass
class Content:
    """What the samples hold of one modality. numbers: one value a sample that has it. lacking: keys of those without,
    and of texts those without a letter or digit."""

    numbers: dict[str, list[float]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)

    def add(self, measures: Measures) -> None:
        """One more sample that has it."""
        for name, number in measures.numbers.items():
            self.numbers.setdefault(name, []).append(number)
        self.texts += [measures.text] * bool(measures.text)

    def middle(self, name: str) -> int:
        """The median of a number."""
        return int(np.median(self.numbers[name]))


@dataclass
class Look:
    """A dataset that was looked at.

    Attributes:
        samples: how many there are.
        looked: at how many of them.
        fields: names of fields, with how many of these have them.
        held: by modality, of those that any sample has.
        labels: by field of the json, how often each of its values occurs; only fields that all of these have.
    """

    samples: int
    looked: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    held: dict[str, Content] = field(default_factory=dict)
    labels: dict[str, Counter[str]] = field(default_factory=dict)

    def see_names(self, named: Sequence[tuple[str, Collection[str]]]) -> None:
        """Learn from (key, names of fields) of all samples which of them lack what others hold. A json may be text."""
        self.looked = len(named)
        for modality, held in self.held.items():
            kinds = {*decode.FIELDS[modality], *(["json"] if modality == "text" else [])}
            held.lacking = held.lacking if modality == "text" else []
            held.lacking = list(dict.fromkeys([*held.lacking, *(key for key, names in named if not kinds & {*names})]))

    def partly(self, modality: str) -> bool:
        """Whether some samples have what a network of this modality takes, and some not."""
        return modality in self.held and bool(self.held[modality].lacking)

    def classes(self) -> dict[str, Counter[str]]:
        """The fields of the json that may be labels: a few values, most of which occur again."""
        return {
            name: values for name, values in self.labels.items()
            if len(values) in CLASSES and len(values) * 2 <= values.total() or name == LABEL and len(values) > 1
        }  # fmt: skip

    def why_not(self, modality: str) -> str:
        """What is missing for a network of this modality; "" where each sample has what it takes."""
        kinds = " or ".join(decode.FIELDS[modality])
        if modality not in self.held:
            return f"no {INPUTS[modality].plural} ({kinds})"
        held = self.held[modality]
        if "letters" in held.numbers and not any(held.numbers["letters"]):
            return "all of its texts are empty"
        if held.lacking:
            some = f"{len(held.lacking)} of {self.looked} samples, such as {held.lacking[0]!r}"
            return f"no {INPUTS[modality].plural} ({kinds}) in {some}"
        return ""

    def described(self) -> str:
        """In words, for who has typed the command."""
        parts = [f"{INPUTS[name].plural} ({_measured(held)})" for name, held in self.held.items()]
        return ", ".join(parts) or f"nothing that a network takes (fields: {', '.join(sorted(self.fields))})"


def _measured(held: Content) -> str:
    return ", ".join(
        f"{name} {min(values):.15g}" if min(values) == max(values) else
        f"{name} {min(values):.15g} to {max(values):.15g}"
        for name, values in held.numbers.items()
        if name != "letters" and not (name == "channels" and "side" in held.numbers and min(values) == COLOURS)
    )  # fmt: skip


def look_at(samples: Iterable[Sample], count: int) -> Look:
    """What `samples` hold, some of the `count` that there are.

    Raises:
        DataError: one of them is damaged.
    """
    look, metadata = Look(count), list[dict[str, Any]]()
    for sample in samples:
        look.looked += 1
        look.fields.update(sample.fields.keys())
        for modality, measure in MEASURED.items():
            _add(look, modality, sample, measure)
        metadata.append(_meta(sample))
    for modality, held in list(look.held.items()):
        if not held.numbers:
            del look.held[modality]
    names = set.intersection(*map(set, metadata)) if metadata else set()
    look.labels = {name: Counter(str(values[name]) for values in metadata) for name in sorted(names)}
    return look


def _add(look: Look, modality: str, sample: Sample, measure: Callable[[Sample], Measures]) -> None:
    held = look.held.setdefault(modality, Content())
    if not _has(modality, sample):
        held.lacking.append(sample.key)
        return
    try:
        held.add(measure(sample))
    except DataError as error:
        where = f"shard {sample.shard}, sample {sample.key!r}" if sample.shard else f"sample {sample.key!r}"
        raise DataError(f"{where}: {error}") from error


def _has(modality: str, sample: Sample) -> bool:
    if modality == "text" and "txt" not in sample.fields:
        return is_captioned(sample) or _is_document(sample)
    return any(name in sample.fields for name in decode.FIELDS[modality])


def _is_document(sample: Sample) -> bool:
    """Whether its json is a text; it may be metadata as well."""
    try:
        return bool(decode.document(sample))
    except DataError:
        return False


def _meta(sample: Sample) -> dict[str, Any]:
    """The values of its json that may be labels."""
    try:
        found = decode.meta(sample.fields["json"]) if "json" in sample.fields else {}
    except DataError:  # a document that is no object
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str | int | bool)}


def stored(index: DatasetIndex, most: int = MOST) -> Iterator[Sample]:
    """At most `most` samples of an index, from all over it; of large ones fewer, which seconds suffice for; of remote
    ones a few runs of neighbours, which are fetched together."""
    mean = sum(shard.bytes for shard in index.shards) // len(index) + 1
    most = min(most, max(FEW, BYTES // mean))
    near = is_remote(index)
    return read_numbers(index, near_numbers(len(index), min(most, FEW)) if near else spread_numbers(len(index), most))


def near_numbers(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, in RUNS runs of neighbours."""
    if count <= most:
        return list(range(count))
    length = max(1, most // RUNS)
    return sorted({at for start in spread_numbers(count - length + 1, RUNS) for at in range(start, start + length)})


def spread_numbers(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread."""
    return sorted({number * count // min(count, most) for number in range(min(count, most))})


def check_label(label: str, asked: str | None, *looks: Look) -> None:
    """Refuse a field of the json that cannot be a label. asked: what the source calls it. Raises ConfigError."""
    for look in looks:
        if label not in look.labels:
            there = ", ".join(look.labels) or "no field that all samples have"
            raise ConfigError(f"--label: value {asked or label!r} is not in the json of each sample; allowed: {there}")
