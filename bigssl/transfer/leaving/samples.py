"""Real samples that an export is proven with: as they lie in shards for the other library, collated for ours."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bigssl.data.errors import DataError, display
from bigssl.data.kinds import decode
from bigssl.data.kinds.captions import all_captions, is_captioned
from bigssl.data.loading.collate import collate
from bigssl.data.order.stream import read_in_order
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.transfer.features import read_samples
from bigssl.transfer.inputs import AudioInput, Input, TextInput

Samples = Mapping[str, list[Sample]]  # by role of a part


def collated(takes: Input, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """The view that evaluation has of the samples, by the names that the modality has for a batch."""
    views = [takes.tokens(_words(s)) if isinstance(takes, TextInput) else takes.view(s) for s in samples]
    batch: dict[str, Tensor] = collate(views)
    return batch


def contents(takes: Input, samples: Sequence[Sample]) -> list[bytes]:
    """What the other library gets of them: the files as they are; of sounds `.npy` of the samples at the rate that the
    extractor asks for, float32 [T], as decoding and resampling are up to its user."""
    if isinstance(takes, TextInput):
        return [_words(sample).encode() for sample in samples]
    found = [decode.field(sample, decode.FIELDS[takes.modality]) for sample in samples]
    return [_waveform(takes, data) for data in found] if isinstance(takes, AudioInput) else found


def _words(sample: Sample) -> str:
    """The first caption, or a document in one piece."""
    return all_captions(sample)[0] if is_captioned(sample) else decode.running_text(sample)


def with_a_long_one(takes: Input, samples: Sequence[Sample]) -> list[Sample]:
    """The samples; in place of the last text all of them, one after another and again, until they are longer than the
    network takes: what another library does at its limit shows."""
    if not isinstance(takes, TextInput) or not samples:
        return list(samples)
    texts = [_words(sample) for sample in samples]
    tokens = sum(len(each) for each in takes.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    if not tokens:
        return list(samples)
    long = " ".join(texts * (1 + takes.length // tokens))
    return [*samples[:-1], samples[-1]._replace(key=f"{samples[-1].key}+", fields={"txt": long.encode()})]


def some_samples(urls: Sequence[str], takes: Input, count: int) -> list[Sample]:
    """The first `count` of a fair order of the first shards that hold what a network takes, as `with_a_long_one`.

    Raises:
        DataError: none do, or they cannot be read.
    """
    fields = (*decode.FIELDS[takes.modality], *(decode.DOCUMENTS if isinstance(takes, TextInput) else ()))
    for url in urls:
        index = DatasetIndex.load(url)
        first = next(read_in_order(index, 1), None)
        if first is not None and any(field in first.fields for field in fields) and _readable(takes, first):
            return with_a_long_one(takes, list(itertools.islice(read_samples(index, count), count)))
    named = ", ".join(map(display, urls)) or "nothing"
    raise DataError(f"no {takes.plural} in {named}, and a proof needs some; allowed: --data SHARDS that hold them")


def _readable(takes: Input, sample: Sample) -> bool:
    """json beside a picture is metadata, beside nothing a document."""
    return not isinstance(takes, TextInput) or is_captioned(sample) or decode.only_json(sample.fields)


def _waveform(takes: AudioInput, data: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, decode.audio(data, rate=takes.rate, mono=True)[0][:, 0])
    return file.getvalue()


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")
