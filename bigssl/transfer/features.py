"""Frozen features of samples: of a network, or of the raw input that a network has to beat."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode, text
from bigssl.data.order.stream import SampleReader, Stream, read_in_order
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.modality import modality_of_type
from bigssl.transfer.inputs import RAW_SIDE as RAW_SIDE
from bigssl.transfer.inputs import ImageInput, Input, TextInput

TOGETHER = 256  # samples that are fetched at once from remote shards


@dataclass(frozen=True)
class Views:
    """arrays: collated views by name, [B, ...], with keys and metadata."""

    arrays: dict[str, Tensor]
    keys: list[str]
    meta: list[dict[str, Any]]


@dataclass(frozen=True)
class ImageBatch:
    """pixels uint8 [B, 3, size, size] with keys and metadata."""

    pixels: Tensor
    keys: list[str]
    meta: list[dict[str, Any]]


def column(keys: Sequence[str], meta: Sequence[dict[str, Any]], field: str) -> list[str]:
    for key, values in zip(keys, meta, strict=True):
        if field not in values:
            there = ", ".join(sorted(values)) or "none"
            raise DataError(f"sample {key!r}: no metadata field {field!r} in its json; it has {there}")
    return [str(values[field]) for values in meta]


def read_samples(index: DatasetIndex, limit: int | None = None) -> Iterator[Sample]:
    """Every sample once, or a fixed fair subset of `limit` samples: the beginning of one shuffled order. Shuffled also
    where all are read: statistics by batch would otherwise be those of a class at a time."""
    stream = _mixed(index)
    return (stream.read(position) for position in range(min(limit or len(index), len(index))))


def decode_pixels(sample: Sample, size: int) -> np.ndarray:
    """uint8 [3, size, size]: the view of a picture that evaluation has."""
    return ImageInput(size).view(sample)["image"]


def has_picture(index: DatasetIndex) -> bool:
    """Whether the first sample has a picture."""
    sample = next(read_in_order(index, 1), None)
    return sample is not None and any(kind in sample.fields for kind in decode.IMAGES)


def metadata(sample: Sample) -> dict[str, Any]:
    """The `json` member, {} where there is none."""
    return decode.meta(sample.fields["json"]) if "json" in sample.fields else {}


def chosen(index: DatasetIndex, limit: int | None = None) -> Sequence[int]:
    """Ascending numbers of the samples that `read_samples` gives."""
    if limit is None or limit >= len(index):
        return range(len(index))
    return sorted(_mixed(index).locate_many(np.arange(limit))[1].tolist())


def _mixed(index: DatasetIndex) -> Stream:
    """A fair order of all samples: a batch of it is mixed however they were packed."""
    return Stream(index, seed=0)


def samples_at(index: DatasetIndex, numbers: Sequence[int]) -> Iterator[Sample]:
    """The samples with these numbers, in this order; remote ones are fetched in groups."""
    reader = SampleReader(index)
    try:
        for begin in range(0, len(numbers), TOGETHER):
            group = numbers[begin : begin + TOGETHER]
            if reader.remote:
                reader.announce(group, ())
            yield from map(reader.read, group)
    finally:
        reader.close()


def view_batches(samples: Iterable[Sample], taken: Input, *, batch: int) -> Iterator[Views]:
    """What a backbone takes of samples, in batches of `batch` (the last one smaller). Reading is in order, decoding on
    all cores."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        reading = iter(samples)
        while group := list(itertools.islice(reading, batch)):
            found = list(pool.map(taken.view, group))
            arrays = {name: torch.from_numpy(np.stack([each[name] for each in found])) for name in found[0]}
            yield Views(arrays, [s.key for s in group], [metadata(s) for s in group])


def image_batches(samples: Iterable[Sample], *, size: int, batch: int) -> Iterator[ImageBatch]:
    """Decoded images in batches of `batch` (the last one smaller). Reading is in order, decoding on all cores."""
    for found in view_batches(samples, ImageInput(size), batch=batch):
        yield ImageBatch(found.arrays["image"], found.keys, found.meta)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient inside; afterwards every submodule is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def embed(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Collated views on the model's device, by the names of its modality -> features, float32 [B, D]."""
    row = modality_of_type(model.config.model_type)
    if row is None:
        raise DataError(f"a {model.config.model_type} is of no modality that this version knows")
    return row.features(model, batch).float()


def encoder(model: PreTrainedModel, device: str | torch.device) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Encoder of collated views to float32 [B, D] (both on the CPU), by a model that is moved to `device`."""
    model.to(device)  # type: ignore[arg-type]

    def encode(batch: Mapping[str, Tensor]) -> Tensor:
        with evaluating(model):
            return embed(model, {name: value.to(device) for name, value in batch.items()}).cpu()

    return encode


def forward_images(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """`embed` of uint8 [B, 3, H, W]."""
    return embed(model, {"image": pixels})


def network(model: PreTrainedModel, device: str | torch.device) -> Callable[[Tensor], Tensor]:
    """`encoder` of uint8 [B, 3, H, W]."""
    encode = encoder(model, device)
    return lambda pixels: encode({"image": pixels})


def raw(pixels: Tensor) -> Tensor:
    """`ImageInput.raw` of uint8 [B, 3, H, W]."""
    return ImageInput(pixels.shape[-1]).raw({"image": pixels})


def text_encoder(model: PreTrainedModel, words: TextInput, device: str | torch.device
                 ) -> Callable[[Sequence[str]], Tensor]:
    """`encoder` of texts, each cut or padded to the length of `words`."""
    encode = encoder(model, device)

    def encode_texts(texts: Sequence[str]) -> Tensor:
        encoded = [text.encode(words.tokenizer, each, words.length) for each in texts]
        ids, mask = (torch.from_numpy(np.stack(part)) for part in zip(*encoded, strict=True))
        return encode({"input_ids": ids, "attention_mask": mask})

    return encode_texts
