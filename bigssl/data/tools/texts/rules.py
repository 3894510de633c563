"""Which texts are worthless to a language model, by rules of published corpora (sources: `lines`, `near`)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from math import inf

import numpy as np

from bigssl.data.tools.survey import Survey
from bigssl.data.tools.texts.lines import shared_shares
from bigssl.data.tools.texts.near import INSTALL, can_find_near, near_firsts
from bigssl.data.tools.verdicts import Hit, Rule, Thresholds

SHARED_BY = 3  # documents, for a line to be boilerplate
NEAR = 0.1, 0.95  # shares for which signatures of this length can be sorted


def _by_number(rule: str, what: str, bad: Callable[[float, float], bool], default: float, most: float = 1) -> Rule:
    def find(survey: Survey, thresholds: Thresholds, left: np.ndarray) -> Iterator[Hit]:
        for number, document in sorted(survey.documents.items()):
            if bad(document.numbers[what], thresholds.at.get(rule, default)):
                yield Hit(number, None, round(document.numbers[what], 4))

    return Rule(_MEANINGS[rule], find, default, (0, most))


def _shared_lines(survey: Survey, thresholds: Thresholds, left: np.ndarray) -> Iterator[Hit]:
    numbers = sorted(survey.documents)
    shares = shared_shares([survey.documents[number].lines for number in numbers], SHARED_BY)
    most = thresholds.at.get("shared-lines", 0.5)
    yield from (Hit(number, None, round(float(share), 4)) for number, share in zip(numbers, shares, strict=True)
                if share > most)  # fmt: skip


def _other_script(survey: Survey, thresholds: Thresholds, left: np.ndarray) -> Iterator[Hit]:
    """A text without letters is in no script; `empty-text` is about that."""
    least = thresholds.at.get("script", 0.5)
    for number, document in sorted(survey.documents.items()):
        letters = document.scripts.total()
        share = sum(document.scripts[name] for name in thresholds.scripts) / max(1, letters)
        if letters and share < least:
            yield Hit(number, None, round(share, 4))


def _near(survey: Survey, thresholds: Thresholds, left: np.ndarray) -> Iterator[Hit]:
    signatures = {number: document.signature for number, document in survey.documents.items()
                  if left[number] and document.signature is not None}  # fmt: skip
    for number, first in near_firsts(signatures, thresholds.at.get("near-duplicates", 0.8)):
        yield Hit(number, None, survey.index.row(first)[1].key)


_MEANINGS = {
    "few-words": "a text of fewer than {at:g} words (Gopher)",
    "symbols": "a text of more than {at:g} # or ellipses a word (Gopher)",
    "lettered": "a text in which less than {at:g} of what stands between spaces has a letter (Gopher)",
    "bullets": "a text of whose lines more than {at:g} begin with a bullet (Gopher)",
    "ellipses": "a text of whose lines more than {at:g} end with an ellipsis (Gopher)",
    "repeated-lines": "a text of whose lines more than {at:g} equal an earlier one in it (Gopher)",
    "short-lines": "a text whose lines have fewer than {at:g} characters on average (menus; as C4's lines)",
}
TEXT_RULES = {
    "few-words": _by_number("few-words", "words", operator.lt, 50, inf),
    "symbols": _by_number("symbols", "symbols", operator.gt, 0.1, inf),
    "lettered": _by_number("lettered", "lettered", operator.lt, 0.8),
    "bullets": _by_number("bullets", "bullets", operator.gt, 0.9),
    "ellipses": _by_number("ellipses", "ellipses", operator.gt, 0.3),
    "repeated-lines": _by_number("repeated-lines", "repeated", operator.gt, 0.3),
    "short-lines": _by_number("short-lines", "line", operator.lt, 10, inf),
    "shared-lines": Rule(
        f"a text of whose lines more than {{at:g}} stand in {SHARED_BY} different texts or more (boilerplate; as C4's "
        "repeated spans)", _shared_lines, 0.5),
    "script": Rule(
        "a text of whose letters less than {at:g} are of the scripts {scripts}", _other_script, 0.5, (0, 1),
        lambda thresholds: "" if thresholds.scripts else "needs --script NAMES, e.g. latin or han,hiragana,katakana"),
    "near-duplicates": Rule(
        "an earlier text shares about {at:g} of its five-word sequences (MinHash; Lee et al. 2022)", _near, 0.8, NEAR,
        lambda thresholds: "" if can_find_near() else f"needs the package datasketch: {INSTALL}"),
}  # fmt: skip
