"""Frozen features of images and texts: of a network, or of the raw input that a network has to beat."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.data.errors import DataError
from bigssl.data.kinds import augment, decode, text
from bigssl.data.order.stream import SampleReader, Stream, read_in_order
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.norm import has_batch_norm
from bigssl.nets.pool import normalise, pooled
from bigssl.transfer.inputs import TextInput

RAW_SIDE = 64  # pixels a side at most of raw pictures as a baseline
TOGETHER = 256  # samples that are fetched at once from remote shards


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
    """uint8 [3, size, size]: the centre of the image, shorter side resized to `size`.

    A JPEG is decoded whole: what a decoder makes of it at a half or a quarter is not what the exported preprocessor
    makes of it.
    """
    data = decode.field(sample, decode.IMAGES)
    try:
        return augment.center(decode.image(data), size)
    except DataError as error:
        raise DataError(f"shard {sample.shard}, sample {sample.key!r}: {error}") from error


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


def image_batches(samples: Iterable[Sample], *, size: int, batch: int) -> Iterator[ImageBatch]:
    """Decoded images in batches of `batch` (the last one smaller). Reading is in order, decoding on all cores."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        group: list[Sample] = []
        for sample in samples:
            group.append(sample)
            if len(group) == batch:
                yield _image_batch(group, size, pool)
                group = []
        if group:
            yield _image_batch(group, size, pool)


def _image_batch(samples: list[Sample], size: int, pool: ThreadPoolExecutor) -> ImageBatch:
    pixels = np.stack(list(pool.map(lambda sample: decode_pixels(sample, size), samples)))
    return ImageBatch(torch.from_numpy(pixels), [s.key for s in samples], [metadata(s) for s in samples])


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


def forward_images(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] on the model's device -> float32 [B, D]; in the dtype and memory format of the model."""
    values = normalise(pixels).to(model.dtype)
    if has_batch_norm(model):
        values = values.contiguous(memory_format=torch.channels_last)
    return pooled(model, {"pixel_values": values}).float()


def network(model: PreTrainedModel, device: str | torch.device) -> Callable[[Tensor], Tensor]:
    """Encoder uint8 [B, 3, H, W] -> float32 [B, D] (both on the CPU) of a model that is moved to `device`."""
    model.to(device)  # type: ignore[arg-type]

    def encode(pixels: Tensor) -> Tensor:
        with evaluating(model):
            return forward_images(model, pixels.to(device)).cpu()

    return encode


def raw(pixels: Tensor) -> Tensor:
    """The baseline that has learnt nothing: uint8 [B, 3, H, W] -> the same, flattened, at most RAW_SIDE pixels a side
    (means of areas)."""
    if max(pixels.shape[-2:]) > RAW_SIDE:
        pixels = F.adaptive_avg_pool2d(pixels.float(), RAW_SIDE).round_().to(torch.uint8)
    return pixels.flatten(1)


def text_encoder(model: PreTrainedModel, words: TextInput, device: str | torch.device
                 ) -> Callable[[Sequence[str]], Tensor]:
    """Encoder of texts, each cut or padded to the length of `words`, to float32 [B, D] on the CPU, of a model that is
    moved to `device`."""
    model.to(device)  # type: ignore[arg-type]

    def encode(texts: Sequence[str]) -> Tensor:
        encoded = [text.encode(words.tokenizer, each, words.length) for each in texts]
        ids, mask = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*encoded, strict=True))
        with evaluating(model):
            return pooled(model, {"input_ids": ids, "attention_mask": mask}).float().cpu()

    return encode
