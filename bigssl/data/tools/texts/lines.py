"""What the rules of published corpora measure of a text: words, symbols, lines.

Gopher: Rae et al. 2021 (https://arxiv.org/abs/2112.11446), appendix A.1; C4: Raffel et al. 2020
(https://arxiv.org/abs/1910.10683), section 2.2. A word of theirs is what stands between spaces; here, as everywhere in
this project, it is also a character of a script that is written without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from bigssl.data.kinds.words import words_in_text

_BULLETS = ("•", "‣", "▪", "●", "◦", "·", "*", "-")
_ELLIPSES = ("…", "...", "。。。")


def text_numbers(text: str) -> Mapping[str, float]:
    """Of a text: `words`; `symbols`, # and ellipses a word; `lettered`, the share of what stands between spaces that
    has a letter; of its lines that are not blank `bullets` and `ellipses`, the shares that begin and end so,
    `repeated`, the share that an earlier one equals, and `line`, their mean length in characters."""
    lines, parts = lines_of(text), text.split()
    words, count = len(words_in_text(text)), max(1, len(lines))
    return {
        "words": words,
        "symbols": (text.count("#") + sum(map(text.count, _ELLIPSES))) / max(1, words),
        "lettered": sum(any(map(str.isalpha, part)) for part in parts) / max(1, len(parts)),
        "bullets": sum(line.startswith(_BULLETS) for line in lines) / count,
        "ellipses": sum(line.endswith(_ELLIPSES) for line in lines) / count,
        "repeated": 1 - len(set(lines)) / count if lines else 0,
        "line": sum(map(len, lines)) / count,
    }


def lines_of(text: str) -> list[str]:
    """Lines that are not blank, without spaces around them."""
    return [line for line in map(str.strip, text.splitlines()) if line]


def line_hashes(text: str) -> np.ndarray:
    """uint64 [L]: each different line of a text, sorted."""
    lines = (line.encode("utf-8", "surrogatepass") for line in set(lines_of(text)))
    digests = [hashlib.blake2b(line, digest_size=8).digest() for line in lines]
    return np.sort(np.frombuffer(b"".join(digests), dtype=np.uint64))


def shared_shares(hashes: list[np.ndarray], documents: int) -> np.ndarray:
    """float64 [N]: the share of each text's lines that stand in at least so many `documents`; texts of the same lines
    count as one of them, so that copies alone make nothing boilerplate.

    hashes: of each text, as of `line_hashes`.
    """
    different = {lines.tobytes(): lines for lines in hashes}
    every = np.concatenate([*different.values(), np.zeros(0, np.uint64)])
    lines, counts = np.unique(every, return_counts=True)
    often = lines[counts >= documents]
    return np.array([np.isin(each, often).mean() if len(each) else 0.0 for each in hashes])
