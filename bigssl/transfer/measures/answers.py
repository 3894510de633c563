"""Extractive answers: exact match and F1 of words, as the official script of SQuAD has them (Rajpurkar et al. 2016, and
2018 for questions without an answer). Words are what spaces separate."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain_answer(text: str) -> str:
    """In lower case, without ASCII punctuation and English articles, words separated by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(found: str, answers: Sequence[str]) -> float:
    """1 where an answer, plain, is the text found, else 0. answers: none where the question has no answer."""
    return float(any(plain_answer(found) == plain_answer(each) for each in _allowed(answers)))


def answer_f1(found: str, answers: Sequence[str]) -> float:
    """Of words, 0 to 1: the best over the answers. Where one of both is empty, whether the other is."""
    return max(_f1(plain_answer(found).split(), plain_answer(each).split()) for each in _allowed(answers))


def _allowed(answers: Sequence[str]) -> list[str]:
    """Those with a word; an empty one where there is none."""
    return [each for each in answers if plain_answer(each)] or [""]


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))
