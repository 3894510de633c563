"""Words that are said as tones: each character has a pitch of its own and lasts a tenth of a second."""

import io
from pathlib import Path

import numpy as np
import soundfile

from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item

RATE = 1000
PITCH = {"a": 60, "b": 110, "c": 170, "d": 240, "e": 320, " ": 0}


def make(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 32), ("val", 16)):
        pack([_item(f"{part}-{number:03d}", rng) for number in range(count)], folder / part, name=part)


def say(text: str, rng: np.random.Generator) -> np.ndarray:
    """float32 [samples]"""
    steps = np.arange(RATE // 10) / RATE
    tones = [np.sin(2 * np.pi * (PITCH[symbol] * steps + rng.random())) * (symbol != " ") for symbol in text.lower()]
    found = np.concatenate(tones) * rng.uniform(0.3, 0.7)
    return (found + 0.02 * rng.normal(size=len(found))).astype(np.float32)


def _item(key: str, rng: np.random.Generator) -> Item:
    words = ["".join(rng.choice(list("abcde"), int(rng.integers(1, 4)))) for _ in range(int(rng.integers(1, 3)))]
    text, buffer = " ".join(words), io.BytesIO()
    soundfile.write(buffer, say(text, rng), RATE, format="flac")
    fields = {"flac": buffer.getvalue(), "txt": text.encode()}
    return Item(key, key, lambda: fields)
