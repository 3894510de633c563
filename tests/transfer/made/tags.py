"""Sentences with the names in them tagged: persons stand before verbs, places behind prepositions; some names of val do
not occur in train, and "may" and "reading" are names or none by what stands around them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from written import shards_of

PERSONS = ["anna", "may", "peter", "john smith", "mary", "paul"]
PLACES = ["paris", "new york", "reading", "london", "rome"]
VERBS, THINGS = ["likes", "saw", "left", "painted"], ["the house", "a red bird", "reading", "the may tree", "music"]


def sentence(draw: random.Random, new: bool) -> tuple[list[str], list[str]]:
    person = draw.choice(["carla", "tom"] if new else PERSONS)
    parts = [(person, "PER"), (draw.choice(VERBS), ""), (draw.choice(THINGS), ""), (draw.choice(["in", "near"]), ""),
             ("madrid" if new else draw.choice(PLACES), "LOC"), (".", "")]  # fmt: skip
    words, tags = [], []
    for text, kind in parts:
        for number, word in enumerate(text.split()):
            words.append(word)
            tags.append("O" if not kind else f"{'I' if number else 'B'}-{kind}")
    return words, tags


def make(folder: Path) -> None:
    draw = random.Random(0)
    for part, count in (("train", 64), ("val", 24)):
        rows = [sentence(draw, part == "val" and number % 4 == 0) for number in range(count)]
        shards_of(folder / part, [
            {"txt": " ".join(words).encode(), "json": json.dumps({"tokens": words, "label": tags}).encode()}
            for words, tags in rows
        ])  # fmt: skip
