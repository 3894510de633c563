"""Which tokens make up a word, told from the text: a tokenizer may know no borders.

WordPiece cuts at spaces and punctuation first, but SentencePiece may take a whole text as one piece of work, byte-level
BPE a run of letters, and a tokenizer of single characters everything apart. So a token goes on with the word of the one
before it where the text does not end the word between them:

    never    inside a character (byte-level tokens share one), before a combining mark
    always   at spaces, punctuation and symbols, and between characters of scripts that are written without spaces
             (Chinese, Japanese, Thai, Lao, Khmer, Burmese): there a word is a character, as in BERT's Chinese model, or
             the token that holds several
    else     not: letters and digits that follow each other are one word

A run of more than LONGEST tokens without an end (DNA, base64) is no word: each of its tokens stands alone.
"""

from __future__ import annotations

import math
import re
import unicodedata
from functools import lru_cache

import numpy as np

_SPACED = re.compile(r"\S+\s*")
LONGEST = 32  # tokens; the longest words of a text are some 20 letters
WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x3007),
    (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)  # fmt: skip
"""Thai and Lao, Burmese, Khmer, CJK radicals, iteration marks, kana and its extensions, CJK ideographs, half
width kana, rarer ideographs."""
ZERO_WIDTH_SPACE = 0x200B
MARK, LETTER, ALONE, END = range(4)  # what a character does to a word: joins, joins its like, is one, ends it
_SPELLED = re.compile("AM*|[LM]+")  # words in these, by their first letters


def word_numbers(text: str, offsets: np.ndarray) -> np.ndarray:
    """int64 [T]: the number of each token's word, from 0, growing.

    offsets: int64 [T, 2], first character of each token in `text` and the one after its last; equal where a token
    stands for nothing in the text (special tokens), which is a word of its own.
    """
    if not len(offsets):
        return np.zeros(0, dtype=np.int64)
    kinds = _kinds(text)
    begin, end = offsets[:, 0], offsets[:, 1]
    empty = begin >= end
    left, right = kinds[np.maximum(end[:-1] - 1, 0)], kinds[np.minimum(begin[1:], len(kinds) - 1)]
    touching = begin[1:] == end[:-1]
    real = ~empty[1:] & ~empty[:-1]
    inside = real & ((begin[1:] < end[:-1]) | touching & (right == MARK) & (left != END))  # of a character
    joined = inside | real & touching & (left <= LETTER) & (right == LETTER)
    numbers = np.concatenate([[0], np.cumsum(~joined)])
    sizes = np.bincount(numbers)[numbers]
    return np.concatenate([[0], np.cumsum(np.where(sizes[1:] > LONGEST, ~inside, ~joined))])


def words_in_text(text: str) -> list[str]:
    """Its words: letters and digits that follow each other, and characters of scripts without spaces, with the marks
    on them."""
    spelled = np.frombuffer(b"MLAE", dtype=np.uint8)[_kinds(text)].tobytes().decode()
    return [text[found.start() : found.end()] for found in _SPELLED.finditer(spelled)]


def begins_word(text: str, place: int) -> bool:
    """Whether a word begins at a place > 0 of a text: behind a space, or at a character of a script without spaces."""
    if text[place - 1].isspace():
        return not text[place].isspace()
    return _kind(ord(text[place])) == ALONE


def joins_before(text: str, place: int) -> bool:
    """Whether the character at a place belongs to the one before it."""
    return _kind(ord(text[place])) == MARK


def _kinds(text: str) -> np.ndarray:
    """int8 [characters + 1]: MARK, LETTER, ALONE or END; END after the last."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    different, places = np.unique(points, return_inverse=True)
    kinds = np.array([*map(_kind, different.tolist()), END], dtype=np.int8)
    return kinds[np.append(places, -1)]


@lru_cache(maxsize=1 << 16)
def _kind(point: int) -> int:
    category = unicodedata.category(chr(point))
    if point == ZERO_WIDTH_SPACE:
        return END
    if category[0] == "M" or category == "Cf":
        return MARK
    if category[0] in "ZPS" or category == "Cc":
        return END
    return ALONE if any(first <= point <= last for first, last in WITHOUT_SPACES) else LETTER


def view_of(text: str, rng: np.random.Generator, *, keep: float, leave_out: float) -> str:
    """Words in a row, a share of `keep` to 1 of them (cropping, Izacard et al. 2022, https://arxiv.org/abs/2112.09118),
    each left out with probability `leave_out` (Wu et al. 2020, https://arxiv.org/abs/2012.15466), one at least.

    A text without spaces is taken by its characters.
    """
    words = _SPACED.findall(text)
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
