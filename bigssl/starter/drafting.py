"""From a look at the data to the values of a first recipe. One rule for all machines: small enough for two CPU cores,
so that what it gives is the same everywhere; what to raise stands beside it in the file (see `writing`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bigssl.config.errors import ConfigError
from bigssl.data.kinds.text import load_tokenizer
from bigssl.nets.modality import MODALITIES
from bigssl.nets.modality.small import small_network
from bigssl.objectives.base import Objective
from bigssl.starter.looking import Content, Look

SOURCE = "data"
SIDES = (16, 64)  # pixels: of the smallest and the largest picture that a first network takes
TOKENS = (16, 64)
SECONDS = 1.0  # of sound
STEPS_OF_SERIES = 512
PASSES = 100  # over the data, as far as there are few samples ...
STEPS = (60, 400)  # ... and these allow it: minutes
BATCH = 128


class Parts(NamedTuple):
    """Where the training data lies, and what is held out ("" where nothing is, and why), with a look at both.

    label: the field of the json by which is to be judged, where one was asked for.
    """

    train: str
    held: str
    look: Look
    look_at_held: Look | None
    why: str
    label: str | None


def refuse_unservable(name: str, kind: type[Objective]) -> None:
    """Refuse a task of which no recipe can be made from data alone. Raises ConfigError."""
    if kind.__dict__.get("composite"):
        raise ConfigError(
            f"init {name}: it is made of other objectives; begin with one of them (`bigssl init`), then write them as "
            f"parts, as launch/recipes/demo.yaml does"
        )
    given = {"source", *kind.takes, *kind.starts}
    needed = [field for field, info in kind.Config.model_fields.items() if info.is_required() and field not in given]
    if needed:
        raise ConfigError(f"init {name}: objective.{needed[0]} has no value to begin with (`starts` of its class)")


def missing(kind: type[Objective], look: Look) -> str:
    """What the data lack for a task, in words; "" where they serve it."""
    reasons = dict.fromkeys(look.why_not(takes.modality) for takes in kind.takes.values())
    few = f"no {kind.least} samples, which it needs at least" if look.samples < kind.least else ""
    return " and ".join(filter(None, reasons)) or few


def sizes_of(modality: str, held: Content, tokenizer: str) -> dict[str, Any]:
    """The recipe's fields of a backbone of this modality, as the data have them."""
    if modality == "image":
        return {"size": _near(held.middle("side"), *SIDES), **_depth(held)}
    if modality == "text":
        encode = load_tokenizer(tokenizer)
        lengths = [len(encode(text, verbose=False)["input_ids"]) for text in held.texts]
        return {"tokenizer": tokenizer, "length": _near(int(np.quantile(lengths, 0.9)), *TOKENS)}
    if modality == "series":
        return {"channels": held.middle("channels"), "length": min(held.middle("steps"), STEPS_OF_SERIES)}
    if modality == "audio":
        rate = held.middle("rate")
        return {"rate": rate, "length": min(held.middle("samples"), round(SECONDS * rate))}
    known = ", ".join(MODALITIES)
    raise ConfigError(f"init: nothing is known of the sizes of {modality}; allowed: {known}")


def _depth(held: Content) -> dict[str, Any]:
    """One channel where all pictures that were looked at are grey; a window that most pixels of deep ones lie in."""
    numbers = held.numbers
    found: dict[str, Any] = {"channels": 1} if max(numbers["channels"]) == 1 else {}
    if "darkest" in numbers:
        low, high = float(np.quantile(numbers["darkest"], 0.05)), float(np.quantile(numbers["brightest"], 0.95))
        whole = all(value.is_integer() for value in (*numbers["darkest"], *numbers["brightest"]))
        low, high = (round(low), round(high)) if whole else (low, high)
        found["window"] = [low, high if high > low else low + 1]
    return found


def _near(value: int, least: int, most: int) -> int:
    """The multiple of 16 within these bounds that is next above, or the largest."""
    return max(least, min(most, -(-value // 16) * 16))


def batch_of(samples: int) -> int:
    """Samples of a step: a power of two, so that any usual number of ranks divides it; half of the data at most, where
    there are more than eight."""
    most = min(BATCH, max(samples // 2, min(samples, 8)))
    return int(2 ** (most.bit_length() - 1))


def steps_of(samples: int, batch: int) -> int:
    """PASSES over the data within STEPS, in tens."""
    return max(STEPS[0], min(STEPS[1], PASSES * samples // batch // 10 * 10))


def drafted(name: str, task: str, kind: type[Objective], parts: Parts, tokenizer: str) -> dict[str, Any]:
    """The values of the recipe, as YAML has them, without evaluations."""
    batch = batch_of(parts.look.samples)
    steps = steps_of(parts.look.samples, batch)
    defaults = {field: kind.Config.model_fields[field].default for field in kind.takes}
    backbones = {
        defaults[field]: _backbone(takes.modality, takes.kinds, parts.look, tokenizer)
        for field, takes in kind.takes.items()
    }
    return {
        "name": name,
        "seed": 0,
        "steps": steps,
        "objective": {"name": task, "source": SOURCE, **kind.starts},
        "backbones": backbones,
        "data": {"sources": {SOURCE: {"url": parts.train}}},
        "batch": {"size": batch},
        "optim": {"name": "adamw", "lr": 0.001, "weight_decay": 0.05, "warmup": 0.1, "schedule": "cosine"},
        "checkpoint": {"every": max(1, steps // 2)},
    }


def _backbone(modality: str, kinds: tuple[str, ...], look: Look, tokenizer: str) -> dict[str, Any]:
    sizes = sizes_of(modality, look.held[modality], tokenizer)
    kind, config = small_network(modality, kinds, sizes)
    return {"type": kind, **sizes, "config": config}
