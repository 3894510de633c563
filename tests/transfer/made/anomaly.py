"""Waves of six channels; in some that are judged, a stretch of two channels runs twice as fast."""

import io
import json
from pathlib import Path

import numpy as np

from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item


def make(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 5), ("val", 4)):
        items = [_item(f"{part}-{number}", rng, part == "val" and number > 0) for number in range(count)]
        pack(items, folder / part, name=part)


def _item(key: str, rng: np.random.Generator, anomalous: bool) -> Item:
    steps = np.arange(160)[:, None]
    speed = np.full((160, 6), 2 * np.pi / 20)
    marks = np.zeros(160, dtype=np.uint8)
    if anomalous:
        first = int(rng.integers(20, 120))
        marks[first : first + 16], speed[first : first + 16, :2] = 1, 4 * np.pi / 20
    values = np.sin(speed.cumsum(0) + rng.uniform(0, 6) + np.arange(6)) + 0.1 * rng.normal(size=(len(steps), 6))
    fields = {"npy": _npy(values.astype(np.float32)), "json": json.dumps({"label": marks.tolist()}).encode()}
    return Item(key, key, lambda: fields)


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()
