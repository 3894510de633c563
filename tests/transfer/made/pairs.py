"""Sentences and the same ones word by word in other words, the last word first: an order to learn, and a dictionary."""

from __future__ import annotations

import json
import random
from pathlib import Path

from written import shards_of

WORDS = {"the": "a", "red": "blue", "house": "garden", "bird": "fish", "cat": "dog", "sees": "hears", "likes": "has"}


def make(folder: Path) -> None:
    draw = random.Random(0)
    for part, count in (("train", 64), ("val", 24)):
        samples = []
        for _ in range(count):
            words = draw.choices(sorted(WORDS), k=draw.randint(4, 7))
            meta = {"target": " ".join(WORDS[word] for word in reversed(words))}
            samples.append({"txt": " ".join(words).encode(), "json": json.dumps(meta).encode()})
        shards_of(folder / part, samples)
