"""What the stream's benchmark reads: four kinds of samples, synthesised, and what is done to each of them."""

import functools
import io
import itertools
import multiprocessing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bigssl.data.kinds import decode, masking, text
from bigssl.data.kinds.augment import SimClrAugment
from bigssl.data.kinds.vocabularies.training import train_tokenizer
from bigssl.data.order import rng

Prepare = Callable[[bytes, np.random.Generator], dict[str, np.ndarray]]
WORDS = 8192
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Workload:
    """`samples` of one kind: field `field`, content `make(number)`, read in batches of `batch`.

    prepare(folder) -> (bytes, generator) -> arrays: decoding and augmentation, the same for every provider.
    """

    field: str
    make: Callable[[int], bytes]
    prepare: Callable[[Path], Prepare]
    samples: int
    batch: int

    def key(self, number: int) -> str:
        return f"sample-{number:07d}"


@functools.cache
def _texture(number: int, side: int = 1024) -> np.ndarray:
    """uint8 [side, side, 3]: noise with the 1/f amplitudes of natural pictures, its colours correlated, with edges."""
    draw = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    layers = []
    for _ in range(4):
        spectrum = np.fft.rfft2(draw.standard_normal((side, side))) / frequency
        layer = np.fft.irfft2(spectrum, s=(side, side))
        layers.append(layer / layer.std())
    grey, patches = layers[0], np.sign(layers[1])  # the zero crossings of a smooth field are outlines of objects
    colours = np.stack([grey + 0.8 * patches + 0.4 * layer for layer in (layers[2], layers[3], -layers[2])], axis=-1)
    return np.clip(128 + 36 * colours, 0, 255).astype(np.uint8)


def jpeg(side: int, number: int) -> bytes:
    """A JPEG of about side × side pixels and quality 90; 500 pixels come to about the size of ImageNet's."""
    draw = np.random.default_rng(number)
    texture = _texture(int(draw.integers(8)))
    span = min(int(side * draw.uniform(1.0, 2.0)), len(texture))
    top, left = draw.integers(len(texture) - span + 1, size=2)
    picture = Image.fromarray(texture[top : top + span, left : left + span])
    buffer = io.BytesIO()
    picture.resize((side, int(side * draw.uniform(0.75, 1))), Image.Resampling.BOX).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _word(number: int) -> str:
    letters = "etaoinshrdlu"
    return "".join(letters[number // 12**place % 12] for place in range(2 + number % 4))


def document(number: int) -> bytes:
    """About 1 kB of words whose frequencies fall off as those of a language do."""
    draw = np.random.default_rng(number)
    words = [_word(int(rank)) for rank in np.minimum(draw.zipf(1.2, 180), WORDS)]
    return " ".join(words).capitalize().encode() + b"."


def series(number: int) -> bytes:
    """An .npy of float32 [512, 12], a random walk: ten seconds of a heart's twelve leads at 50 Hz."""
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(number).standard_normal((512, 12)).cumsum(axis=0).astype(np.float32))
    return buffer.getvalue()


def two_views(size: int, folder: Path) -> Prepare:
    """SimCLR's pair."""
    augment = SimClrAugment(size)

    def prepare(data: bytes, generator: np.random.Generator) -> dict[str, np.ndarray]:
        picture = decode.picture_array(data, size=2 * size)
        return {"view1": augment(picture, generator), "view2": augment(picture, generator)}

    return prepare


def crop_and_flip(size: int, folder: Path) -> Prepare:
    """The masked autoencoder's recipe, and the least that a picture needs: a random crop, mirrored or not."""
    augment = SimClrAugment(size, jitter=0, grey=0, blur=0)

    def prepare(data: bytes, generator: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": augment(decode.picture_array(data), generator)}

    return prepare


def masked_tokens(folder: Path) -> Prepare:
    """BERT's: 128 tokens, 15 % of them masked."""
    file = folder / "tokenizer.json"
    if not file.exists():
        train_tokenizer((document(number).decode() for number in range(500)), 4096, file)
    tokenizer = text.load_tokenizer(file)

    def prepare(data: bytes, generator: np.random.Generator) -> dict[str, np.ndarray]:
        ids, attention, words = text.encode_words(tokenizer, decode.text(data), 128)
        selection = masking.select("token", words, generator, 0.15)
        vocabulary, mask = len(tokenizer), tokenizer.mask_token_id
        masked, labels = masking.corrupt(ids, selection, generator, vocab_size=vocabulary, mask_id=mask)
        return {"input_ids": masked, "attention_mask": attention, "labels": labels}

    return prepare


def scaled_window(folder: Path) -> Prepare:
    """Two views of a series: normalised by channel, a random window, scaled, with jitter."""

    def view(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        begin = int(generator.integers(len(values) - 383))
        window = values[begin : begin + 384] * generator.normal(1, 0.1, values.shape[1]).astype(np.float32)
        return window + 0.05 * generator.standard_normal(window.shape, dtype=np.float32)

    def prepare(data: bytes, generator: np.random.Generator) -> dict[str, np.ndarray]:
        values = decode.series(data)
        values = (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-6)
        return {"view1": view(values, generator), "view2": view(values, generator)}

    return prepare


def workloads(quick: bool) -> dict[str, Workload]:
    """By name."""
    scale = 1 if quick else 4
    jpegs = {side: functools.partial(jpeg, side) for side in (64, 500)}
    return {
        "small": Workload("jpg", jpegs[64], functools.partial(two_views, 48), 4096 * scale, 128),
        "small-crop": Workload("jpg", jpegs[64], functools.partial(crop_and_flip, 56), 8192 * scale, 128),
        "large": Workload("jpg", jpegs[500], functools.partial(crop_and_flip, 224), 1024 * scale, 32),
        "text": Workload("txt", document, masked_tokens, 8192 * scale, 128),
        "series": Workload("npy", series, scaled_window, 8192 * scale, 128),
    }


def side_by_side(work: Callable[[Any], Any], parts: Iterable[Any]) -> list[Any]:
    """[work(part), ...], each in a forked process of its own, which leaves nothing behind that others could feel."""
    running = []
    for part in parts:
        here, there = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_work, args=(work, part, there))
        process.start()
        there.close()
        running.append((process, here))
    results = [here.recv() for _, here in running]  # EOFError where one failed, which has said why
    for process, _ in running:
        process.join()
    return results


def _work(work: Callable[[Any], Any], part: Any, answer: Connection) -> None:
    torch.set_num_threads(1)
    answer.send(work(part))


def make_all(workload: Workload, processes: int) -> list[tuple[str, bytes]]:
    """(key, content) of every sample: whole batches for each process, so that no provider pads, and enough of them."""
    share = workload.batch * processes
    count = share * max(workload.samples // share, 16)

    def make(numbers: range) -> list[tuple[str, bytes]]:
        return [(workload.key(number), workload.make(number)) for number in numbers]

    parts = side_by_side(make, [range(part, count, processes) for part in range(processes)])
    return sorted(itertools.chain(*parts))


class Transform:
    """(key, bytes) -> what a batch holds of a sample: the key, and tensors' arrays.

    keyed: randomness by the sample's key, as the stream has it, so that contents can be compared; else one generator
    per process, which is what other loaders have and costs nothing to make.
    """

    def __init__(self, prepare: Prepare, keyed: bool) -> None:
        self.prepare, self.keyed = prepare, keyed
        self._own = np.random.Generator(np.random.Philox(0))  # the kind that the stream has: speeds of kinds differ

    def __call__(self, key: str, data: bytes) -> dict[str, Any]:
        generator = rng.sample_rng(0, 0, key) if self.keyed else self._own
        return {"key": key, **self.prepare(data, generator)}
