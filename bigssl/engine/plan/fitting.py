"""Do the data fit the networks that see them: does a tokenizer know the texts, and the network the tokens; are pictures
as large as the network, and of the bits that it expects?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bigssl.config.recipe import Recipe
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds.pictures import PictureHead, as_stored
from bigssl.data.kinds.text import special_mask
from bigssl.data.sample import Sample
from bigssl.nets.modality import MODALITIES
from bigssl.nets.towers import Tower

STRANGE, HOPELESS = 0.5, 0.9  # shares of unknown tokens that are warned of and refused
_ENOUGH = 16  # tokens, for a refusal
SMALL = 0.5  # of the network's size, below which most of what it sees of a picture is made up between pixels
FULL = 1 << 16  # values of 16 bits
DARK = 4  # parts of it within which all values of a picture lie that becomes nearly black


def judge_tokens(
    recipe: Recipe, towers: Mapping[str, Tower], source: str, prepared: Sequence[Any]
) -> tuple[list[str], list[str]]:
    """(failures, warnings) about the tokens in some prepared samples of a task.

    Args:
        towers: those of the task. source: the recipe field of the data.
        prepared: what `prepare` gave, with tokens under the name that the modality has for them.
    """
    texts = {name: tower for name, tower in towers.items() if "tokenizer" in MODALITIES[tower.modality].fields}
    batch = MODALITIES["text"].batch
    found = [ids.reshape(-1) for sample in prepared for key, ids in arrays(sample) if key == batch]
    if not texts or not found:
        return [], []
    ids, most = np.concatenate(found), max(tower.vocabulary for tower in texts.values())
    if (strange := ids[(ids < 0) | (ids >= most)]).size:
        field = f"backbones.{next(iter(texts))}.tokenizer: value {recipe.backbones[next(iter(texts))].tokenizer!r}"
        return [f"{field}: gives id {strange[0]} for a sample of {source}; allowed: 0 to {most - 1}, the rows of the "
                "network's token embedding"], []  # fmt: skip
    return _unknown(recipe, texts, source, ids) if len(texts) == 1 else ([], [])


def _unknown(recipe: Recipe, texts: Mapping[str, Tower], source: str, ids: np.ndarray) -> tuple[list[str], list[str]]:
    ((name, tower),) = texts.items()
    tokenizer = tower.tokenizer
    words = ids[~special_mask(tokenizer, ids)]
    share = float((words == tokenizer.unk_token_id).mean()) if words.size and tokenizer.unk_token_id is not None else 0
    if share <= STRANGE:
        return [], []
    text = (
        f"backbones.{name}.tokenizer: value {recipe.backbones[name].tokenizer!r}: {share:.0%} of {words.size} tokens "
        f"of the samples looked at in {source} are {tokenizer.unk_token}, unknown to it; allowed: one that knows these "
        f"texts (`bigssl tokenizer train` makes one of them)"
    )
    return ([text], []) if share >= HOPELESS and words.size >= _ENOUGH else ([], [text])


def arrays(prepared: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Every array in what `prepare` made of a sample, with the last part of its name."""
    if isinstance(prepared, Mapping):
        for key, value in prepared.items():
            yield from arrays(value, str(key))
    elif isinstance(values := getattr(prepared, "values", prepared), np.ndarray):  # of a `Ragged`
        yield name, values


def judge_pictures(
    towers: Mapping[str, Tower], source: str, samples: Sequence[Sample | DataError]
) -> list[str]:
    """Warnings about some samples of a source for the backbones that see them; what cannot be read is left to others.

    Args:
        source: the recipe field of the data.
    """
    seeing = {name: tower for name, tower in towers.items() if tower.modality == "image"}
    found = list(_stored(samples)) if seeing else []
    return [f"backbones.{name}.{said}" for name, tower in seeing.items() for said in _said(tower, source, found)]


def _stored(samples: Sequence[Sample | DataError]) -> Iterator[tuple[bytes, PictureHead]]:
    for sample in samples:
        try:
            data = decode.field(sample, decode.IMAGES) if isinstance(sample, Sample) else b""
            yield data, as_stored(data)
        except DataError:
            continue


def _said(tower: Tower, source: str, found: Sequence[tuple[bytes, PictureHead]]) -> Iterator[str]:
    small = [each for _, each in found if min(each.width, each.height) < SMALL * tower.size]
    if 2 * len(small) > len(found):
        least = min(small, key=lambda each: min(each.width, each.height))
        yield (f"size: value {tower.size}: {len(small)} of {len(found)} pictures looked at in {source} are smaller "
               f"than half of it (one of {least.width}×{least.height}): enlarged, they cost time and show nothing more")
    flat = [each for _, each in found if not each.deep]
    if tower.window is not None and flat:
        yield (f"window: value {list(tower.window)}: {len(flat)} of {len(found)} pictures looked at in {source} have 8 "
               "bits: they stay as they are, a window is for those of more")
    deep = [data for data, each in found if each.deep]
    if tower.window is None and deep:
        most = _most(deep)
        if most is not None and most < FULL // DARK:
            yield (f"window: missing: of {len(deep)} pictures of 16 bits looked at in {source} the upper 8 bits are "
                   f"seen, but no value is above {most:g}: nearly black; give [low, high], such as [0, {most:g}]")


def _most(deep: Sequence[bytes]) -> float | None:
    """The largest stored value; None where one cannot be read."""
    try:
        return max(float(decode.grey(data).max()) for data in deep)
    except DataError:
        return None
