"""Frozen features of images and texts: of a network, or of the raw input that a network has to beat."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.data import augment, decode, text
from bigssl.data.errors import DataError, display
from bigssl.data.index import DatasetIndex
from bigssl.data.stream import Sample, Stream, in_order
from bigssl.nets.norm import has_batch_norm
from bigssl.nets.pool import normalise, pooled


@dataclass(frozen=True)
class Features:
    """vectors float32 [N, D] on the CPU, with the key and the metadata (the `json` member) of each sample."""

    vectors: Tensor
    keys: list[str]
    meta: list[dict[str, Any]]

    def column(self, field: str) -> list[str]:
        """A metadata field of every sample; DataError naming the sample without it."""
        return column(self.keys, self.meta, field)


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
    """Every sample once, or a fixed fair subset of `limit` samples: the beginning of one shuffled order."""
    if limit is None or limit >= len(index):
        return in_order(index)
    stream = Stream(index, seed=0)
    return (stream.read(position) for position in range(limit))


def decode_pixels(sample: Sample, size: int) -> np.ndarray:
    """uint8 [3, size, size]: the centre of the image, shorter side resized to `size`."""
    data = decode.field(sample, decode.IMAGES)
    try:
        return augment.center(decode.image(data, size=size), size)
    except DataError as error:
        raise DataError(f"shard {sample.shard}, sample {sample.key!r}: {error}") from error


def metadata(sample: Sample) -> dict[str, Any]:
    """The `json` member, {} where there is none."""
    return decode.meta(sample.fields["json"]) if "json" in sample.fields else {}


def image_batches(index: DatasetIndex, *, size: int, batch: int, limit: int | None = None) -> Iterator[ImageBatch]:
    """Decoded images in batches of `batch` (the last one smaller). Reading is in order, decoding on all cores."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        group: list[Sample] = []
        for sample in read_samples(index, limit):
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
    """The baseline that has learnt nothing: uint8 [B, 3, H, W] -> float32 [B, 3·H·W] in 0..1."""
    return pixels.flatten(1).float() / 255


def encode_with(encoders: dict[str, Callable[[Tensor], Tensor]], index: DatasetIndex, *, size: int, batch: int,
                limit: int | None = None) -> dict[str, Features]:
    """Features of each encoder from a single pass over the images."""
    vectors: dict[str, list[Tensor]] = {name: [] for name in encoders}
    keys: list[str] = []
    meta: list[dict[str, Any]] = []
    for images in image_batches(index, size=size, batch=batch, limit=limit):
        keys += images.keys
        meta += images.meta
        for name, encode in encoders.items():
            vectors[name].append(encode(images.pixels))
    if not keys:
        raise DataError(f"{display(index.url)}: no samples to encode")
    return {name: Features(torch.cat(parts), keys, meta) for name, parts in vectors.items()}


def encode_images(model: PreTrainedModel, index: DatasetIndex, *, size: int, batch: int, device: str | torch.device,
                  limit: int | None = None) -> Features:
    """Features of the images of an index: all, or a fixed fair subset of `limit`. Leaves the model on `device`."""
    return encode_with({"model": network(model, device)}, index, size=size, batch=batch, limit=limit)["model"]


def raw_pixels(index: DatasetIndex, size: int, *, limit: int | None = None) -> Features:
    """Flattened pixels in 0..1, float32 [N, 3·size·size]."""
    return encode_with({"raw": raw}, index, size=size, batch=256, limit=limit)["raw"]


def encode_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, length: int,
                 batch: int, device: str | torch.device) -> Tensor:
    """float32 [N, D] on the CPU; each text cut or padded to `length` tokens. Leaves the model on `device`."""
    model.to(device)  # type: ignore[arg-type]
    vectors = []
    with evaluating(model):
        for start in range(0, len(texts), batch):
            encoded = [text.encode(tokenizer, each, length) for each in texts[start : start + batch]]
            ids, mask = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*encoded, strict=True))
            vectors.append(pooled(model, {"input_ids": ids, "attention_mask": mask}).float().cpu())
    return torch.cat(vectors)


def bag_of_words(texts: Sequence[str], fit_texts: Sequence[str]) -> Tensor:
    """TF-IDF over words, float32 [N, V]; vocabulary (at most 20,000 words) and weights from `fit_texts` alone."""
    # Late: scikit-learn takes a second to import, which every rank of a training run would pay.
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(max_features=20_000, dtype=np.float32, sublinear_tf=True)
    vectorizer.fit(fit_texts)
    return torch.from_numpy(vectorizer.transform(texts).toarray())


def centre(bank: Tensor, *others: Tensor) -> list[Tensor]:
    """All of them minus the mean of the bank [N, D]: without it, a common offset hides differences from the cosine.

    Done alike for trained, random and raw features, or the comparison would favour whoever happens to be centred.
    """
    mean = bank.mean(0)
    return [each - mean for each in (bank, *others)]
