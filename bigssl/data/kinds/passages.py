"""Views of a text: a part of it, some words left out. Pure functions of (text, generator)."""

from __future__ import annotations

import math
import re

import numpy as np

_WORDS = re.compile(r"\S+\s*")


def view_of(text: str, rng: np.random.Generator, *, keep: float, leave_out: float) -> str:
    """Words in a row, a share of `keep` to 1 of them (cropping, Izacard et al. 2022, https://arxiv.org/abs/2112.09118),
    each left out with probability `leave_out` (Wu et al. 2020, https://arxiv.org/abs/2012.15466), one at least.

    A text without spaces is taken by its characters.
    """
    words = _WORDS.findall(text)
    if len(words) < 2:
        words = list(text)
    if not words:
        return text
    least = max(1, math.ceil(keep * len(words)))
    count = int(rng.integers(least, len(words) + 1))
    begin = int(rng.integers(len(words) - count + 1))
    kept = rng.random(count) >= leave_out
    kept[rng.integers(count)] |= not kept.any()
    return "".join(word for word, here in zip(words[begin : begin + count], kept, strict=True) if here).strip() or text
