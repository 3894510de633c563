"""Does a tokenizer know the texts that it is given, and the network the tokens?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bigssl.config.recipe import Recipe
from bigssl.nets.modality import MODALITIES
from bigssl.nets.towers import Tower

STRANGE, HOPELESS = 0.5, 0.9  # shares of unknown tokens that are warned of and refused
_ENOUGH = 16  # tokens, for a refusal


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
    frame = {tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id} - {None}
    words = ids[~np.isin(ids, list(frame))]
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
