"""Pictures with one or two emoji of the demo on clouds of colour, each at a random place and size, with masks and
boxes: what is to be found is told from its ground by what it shows, not by its place or colour."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item

DEMO = Path(__file__).parents[3] / "bigssl/demo/emoji"
CLASSES = {"Smileys & Emotion": 1, "Flags": 2, "Animals & Nature": 3}
WHITE = 235


def make(folder: Path, train: int = 40, val: int = 20, side: int = 32, looked: int = 300) -> None:
    """Shards folder/train and folder/val of so many pictures; those of val show emoji of the demo's val."""
    for part, count, seed in (("train", train, 0), ("val", val, 1)):
        stamps = _stamps(DEMO / part, looked)
        rng = np.random.default_rng(seed)
        items = []
        for number in range(count):
            fields = _scene(stamps, side, rng)
            items.append(Item(f"{part}-{number:05d}", f"{number}", fields.copy))
        pack(items, folder / part, name="scenes")


def _stamps(shards: Path, looked: int) -> list[tuple[str, Image.Image]]:
    found = []
    for number, sample in enumerate(read_in_order(DatasetIndex.load(shards))):
        category = json.loads(sample.fields["json"])["category"]
        if category in CLASSES:
            found.append((category, Image.open(io.BytesIO(sample.fields["jpg"])).convert("RGB")))
        if number == looked:
            break
    return found


def _scene(stamps: list[tuple[str, Image.Image]], side: int, rng: np.random.Generator) -> dict[str, bytes]:
    colours = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    clouds = np.asarray(colours.resize((side, side), Image.Resampling.BICUBIC))
    pixels = np.clip(clouds + rng.normal(0, 20, (side, side, 3)), 0, 255).astype(np.uint8)
    mask, boxes, labels = np.zeros((side, side), np.uint8), [], []
    for at in range(int(rng.integers(1, 3))):
        category, stamp = stamps[rng.integers(len(stamps))]
        wide = int(side * rng.uniform(0.3, 0.48))
        left = at * side // 2 + int(rng.integers(0, side // 2 - wide + 1))  # one in each half: none hides another
        top = int(rng.integers(0, side - wide + 1))
        small = np.asarray(stamp.resize((wide, wide), Image.Resampling.BICUBIC))
        there = (small.min(-1) < WHITE)
        if not there.any():
            continue
        place = (slice(top, top + wide), slice(left, left + wide))
        pixels[place][there] = small[there]
        mask[place][there] = CLASSES[category]
        ys, xs = there.nonzero()
        boxes.append([int(left + xs.min()), int(top + ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1])
        labels.append(category)
    facts = {"boxes": boxes, "labels": labels}
    return {"png": _png(pixels), "mask.png": _png(mask), "json": json.dumps(facts).encode()}


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()
