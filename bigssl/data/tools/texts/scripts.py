"""In which script letters are written, by the names that unicode gives them: no model, and no language."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache

import numpy as np

from bigssl.config.errors import nearest
from bigssl.data.errors import DataError

OTHER = "other"  # letters of no script: modifiers, mathematical ones
_SAME = {"cjk": "han", "ideographic": "han", "halfwidth": "katakana", "fullwidth": "latin"}


def letters_by_script(text: str) -> Counter[str]:
    """How many letters of each script a text has: latin, han, cyrillic, ..."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    counts: Counter[str] = Counter()
    for point, count in zip(*np.unique(points, return_counts=True), strict=True):
        if script := _script(int(point)):
            counts[script] += int(count)
    return counts


def check_scripts(names: Iterable[str]) -> None:
    """Raises DataError where one of `names` is no script."""
    for name in names:
        if name not in _all():
            near = nearest(name, sorted(_all()))
            raise DataError(f"--script {name}: no letter of unicode is in it; allowed: latin, han, cyrillic, arabic, "
                            f"hiragana, ... (`bigssl shards stats` lists those of a dataset){near}")  # fmt: skip


@lru_cache(maxsize=1 << 16)
def _script(point: int) -> str:
    """The first word of a letter's name; "" of what is no letter."""
    character = chr(point)
    if unicodedata.category(character)[0] != "L":
        return ""
    name = unicodedata.name(character, "").lower()
    first = name.replace("-", " ").split(" ")[0]
    return OTHER if first in ("", "modifier", "mathematical", "double") else _SAME.get(first, first)


@cache
def _all() -> frozenset[str]:
    return frozenset(filter(None, map(_script, range(sys.maxunicode + 1))))
