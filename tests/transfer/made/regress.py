"""Pictures of two colours, whose levels are what is to be predicted."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item


def make(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("val", 40)):
        pack([_item(f"{part}-{number:03d}", rng) for number in range(count)], folder / part, name=part)


def _item(key: str, rng: np.random.Generator) -> Item:
    red, blue = rng.uniform(20, 235, 2)
    pixels = np.full((16, 16, 3), (red, 128, blue)) + rng.normal(0, 15, (16, 16, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "png")
    levels = [float(red) / 255, float(blue) / 255]
    fields = {"png": buffer.getvalue(), "json": json.dumps({"levels": levels}).encode()}
    return Item(key, key, lambda: fields)
