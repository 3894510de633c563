"""Measures every sample of a dataset: sizes, lengths, hashes, and what makes a sample worthless."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds.audio import audio
from bigssl.data.kinds.series import series
from bigssl.data.kinds.sound.windows import clipped
from bigssl.data.order.stream import SampleReader
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.jobs import each
from bigssl.data.tools.texts.documents import TextFacts, document_in
from bigssl.data.tools.texts.rewriting import changing, rewritten


class Measured(NamedTuple):
    """What is measured in a field."""

    field: str
    name: str


@dataclass
class Survey:
    """One row per sample, in the order of the index.

    columns: float64 [N], NaN where a sample lacks the field. Every field has `bytes`; texts and json documents have
    `characters` and `letters` (letters and digits); images `width`, `height` and `spread` (standard deviation of
    `grey_values`); series `steps`, `channels`, `nonfinite` (how many numbers) and `spread` (the largest of max - min
    over the channels); audio `seconds`, `channels`, `rate`, `peak` (its
    largest value, of 1) and `clipped` (see `sound.windows.clipped`).
    digests: per field uint64 [N, 2], half each of a 128-bit hash of the bytes; zeros where there is no field.
    damage: number of a sample -> why it cannot be read.
    documents: number of a sample -> what there is to say of its text, where it has one.
    constant: number of a sample -> channels of its series that never change, beside others that do.
    changing: rule of `REWRITES` -> numbers of the samples that it would change, each rule by itself.
    """

    index: DatasetIndex
    columns: dict[Measured, np.ndarray] = field(default_factory=dict)
    digests: dict[str, np.ndarray] = field(default_factory=dict)
    damage: dict[int, str] = field(default_factory=dict)
    documents: dict[int, TextFacts] = field(default_factory=dict)
    constant: dict[int, list[int]] = field(default_factory=dict)
    changing: dict[str, list[int]] = field(default_factory=dict)

    def of(self, name: str) -> dict[str, np.ndarray]:
        """The columns called `name`, by field."""
        return {measure.field: column for measure, column in self.columns.items() if measure.name == name}


@dataclass
class _Shard:
    """The same of one shard, with the numbers of the samples that have a field beside each value."""

    values: dict[Measured, tuple[list[int], list[float]]] = field(default_factory=dict)
    digests: dict[str, tuple[list[int], list[bytes]]] = field(default_factory=dict)
    damage: dict[int, str] = field(default_factory=dict)
    documents: dict[int, TextFacts] = field(default_factory=dict)
    constant: dict[int, list[int]] = field(default_factory=dict)
    changing: dict[str, list[int]] = field(default_factory=dict)


def survey(index: DatasetIndex, jobs: int = 1, *, rewrite: Sequence[str] = (), near: bool = False) -> Survey:
    """Reads and decodes every sample once, in `jobs` processes. Damage is noted, not raised.

    rewrite: rules of `REWRITES` by which texts are rewritten before they are measured. near: texts get the signatures
    by which near duplicates are found.
    """
    whole = Survey(index)
    parts = each(partial(_survey_shard, index, rewrite, near), range(len(index.shards)), jobs)
    for number, part in enumerate(parts):
        first = int(index.offsets[number])
        for measure, (rows, values) in part.values.items():
            column = whole.columns.setdefault(measure, np.full(len(index), np.nan))
            column[np.asarray(rows) + first] = values
        for name, (rows, digests) in part.digests.items():
            column = whole.digests.setdefault(name, np.zeros((len(index), 2), dtype=np.uint64))
            column[np.asarray(rows) + first] = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
        whole.damage |= {row + first: cause for row, cause in part.damage.items()}
        whole.documents |= {row + first: document for row, document in part.documents.items()}
        whole.constant |= {row + first: channels for row, channels in part.constant.items()}
        for rule, rows in part.changing.items():
            whole.changing.setdefault(rule, []).extend(row + first for row in rows)
    index.close()
    return whole


def _survey_shard(index: DatasetIndex, rewrite: Sequence[str], near: bool, number: int) -> _Shard:
    first, reader, facts = int(index.offsets[number]), SampleReader(index), _Shard()
    for sample in reader.ahead(range(first, first + index.shards[number].samples)):
        row = sample - first
        try:
            fields = reader.read(sample).fields
        except DataError as error:
            facts.damage[row] = error.cause or str(error)
            continue
        fields = _as_rewritten(facts, row, fields, rewrite)
        _survey_sample(facts, row, fields)
        if row not in facts.damage and (document := document_in(fields, near=near)):
            facts.documents[row] = document
    reader.close()
    return facts


def _survey_sample(facts: _Shard, row: int, fields: Mapping[str, bytes]) -> None:
    only_text = decode.only_json(fields)
    for name, data in sorted(fields.items()):
        rows, digests = facts.digests.setdefault(name, ([], []))
        rows.append(row)
        digests.append(hashlib.blake2b(data, digest_size=16).digest())
        try:
            measured = measure(name, data, only_text=only_text)
        except DataError as error:
            facts.damage[row] = f"field {name!r}: {error}"
            measured = {"bytes": len(data)}
        for what, value in measured.items():
            rows, values = facts.values.setdefault(Measured(name, what), ([], []))
            rows.append(row)
            values.append(value)
        if name.rpartition(".")[2] == "npy" and row not in facts.damage:
            channels = still_channels(series(data, non_finite="keep"))
            facts.constant |= {row: channels} if channels else {}


def _as_rewritten(facts: _Shard, row: int, fields: dict[str, bytes], rewrite: Sequence[str]) -> dict[str, bytes]:
    """The fields as the rules have them; as they are where they cannot be read, which measuring tells."""
    try:
        for rule in changing(fields):
            facts.changing.setdefault(rule, []).append(row)
        return rewritten(fields, rewrite)
    except DataError:
        return fields


def measure(name: str, data: bytes, *, only_text: bool = False) -> Mapping[str, float]:
    """The measures of field `name`, see `Survey`. only_text: as of `decode.check`. Raises DataError where the field
    cannot be decoded."""
    kind = name.rpartition(".")[2]
    facts: dict[str, float] = {"bytes": len(data)}
    if kind in decode.IMAGES:
        values = grey_values(data)
        facts |= {"width": values.shape[1], "height": values.shape[0], "spread": float(values.std())}
    elif kind == "txt":
        facts |= _text(decode.text(data))
    elif kind == "npy":
        values = series(data, non_finite="keep")
        facts |= {"steps": len(values), "channels": values.shape[1], "spread": series_spread(values)}
        facts["nonfinite"] = int(np.count_nonzero(~np.isfinite(values)))
    elif kind in decode.AUDIO:
        values, rate = audio(data)
        facts |= {"seconds": len(values) / rate, "channels": values.shape[1], "rate": rate}
        facts |= {"peak": float(np.abs(values).max()), "clipped": clipped(values)}
    else:
        decode.check_field(name, data, only_text=only_text)
        facts |= _document(data) if kind == "json" else {}
    return facts


def _text(text: str) -> dict[str, float]:
    return {"characters": len(text), "letters": sum(map(str.isalnum, text))}


def _document(data: bytes) -> dict[str, float]:
    try:
        found = decode.document_json(data)
    except DataError:  # metadata, which has no text to measure
        return {}
    return _text(found if isinstance(found, str) else " ".join(found))


def grey_values(data: bytes) -> np.ndarray:
    """float64 [H, W]: grey values of a picture, 0 to 255; those of a deep one are scaled by its own largest value,
    because 12 bits often lie in 16. Raises DataError."""
    if not _is_deep(data):
        return np.asarray(decode.image(data, mode="L"), dtype=np.float64)
    values = decode.grey(data).astype(np.float64)
    return values * (255 / max(np.abs(values).max(), 1e-30))


def _is_deep(data: bytes) -> bool:
    try:
        return Image.open(io.BytesIO(data)).mode[0] in "IF"
    except Exception:  # whatever is wrong with it, decoding says it with its cause
        return False


def still_channels(values: np.ndarray) -> list[int]:
    """The channels of float32 [T, C] whose finite numbers never change, or that have none; none of a series in which
    nothing does."""
    finite = np.isfinite(values)
    changes = np.where(finite, values, -np.inf).max(axis=0, initial=-np.inf) > np.where(finite, values, np.inf).min(
        axis=0, initial=np.inf)  # fmt: skip
    return np.flatnonzero(~changes).tolist() if changes.any() else []


def series_spread(values: np.ndarray) -> float:
    """The largest of max - min over the channels of float32 [T, C], of finite numbers; 0 where there are none."""
    finite = np.isfinite(values)
    if not finite.any():
        return 0.0
    high = np.where(finite, values, -np.inf).max(axis=0)
    low = np.where(finite, values, np.inf).min(axis=0)
    return float(np.maximum(high.astype(np.float64) - low, 0).max())
