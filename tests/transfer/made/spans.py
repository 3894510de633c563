"""Short texts of two facts and a question after one of them: who is where. The names of val are those of train in other
pairs; the answer is the place behind the name that is asked. One question in eight has no answer."""

from __future__ import annotations

import json
import random
from pathlib import Path

from written import shards_of

NAMES = ["anna", "peter", "mary", "paul", "john", "susan"]
PLACES = ["paris", "london", "rome", "the house", "the garden", "the red car"]


def sample(draw: random.Random, answered: bool) -> dict[str, bytes]:
    (one, other, third), places = draw.sample(NAMES, 3), draw.sample(PLACES, 2)
    facts = [(one, places[0]), (other, places[1])]
    context = " . ".join(f"{name} is in {place}" for name, place in facts)
    asked = draw.randrange(2)
    text = places[asked]
    start = context.rindex(text) if asked else context.index(text)
    answers = {"text": [text], "answer_start": [start]} if answered else {"text": [], "answer_start": []}
    name = facts[asked][0] if answered else third
    meta = {"question": f"where is {name}", "context": context, "answers": answers}
    return {"txt": context.encode(), "json": json.dumps(meta).encode()}


def make(folder: Path) -> None:
    draw = random.Random(0)
    for part, count in (("train", 64), ("val", 24)):
        shards_of(folder / part, [sample(draw, number % 8 != 7) for number in range(count)])
