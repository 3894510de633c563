"""By which rules a sample counts as worthless, and which samples those are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.tools.survey import Survey


@dataclass(frozen=True)
class Thresholds:
    """blank: a picture is blank up to this standard deviation of its grey values (0 to 255). min_text: a text with
    fewer letters and digits is empty. by: duplicates agree in these fields (default: in all that either has)."""

    blank: float = 2.0
    min_text: int = 3
    by: tuple[str, ...] = ()


class Hit(NamedTuple):
    """Sample `number` falls under a rule, because `field` measures `value` (of duplicates: the key of the first)."""

    number: int
    field: str | None
    value: Any


@dataclass(frozen=True)
class Rule:
    """What a rule says, with the thresholds in braces, and what finds its samples in index order."""

    meaning: str
    find: Callable[[Survey, Thresholds], Iterator[Hit]]


def _damaged(survey: Survey, thresholds: Thresholds) -> Iterator[Hit]:
    for number, cause in sorted(survey.damage.items()):
        yield Hit(number, None, cause)


def _where(columns: dict[str, np.ndarray], bad: Callable[[np.ndarray], np.ndarray]) -> Iterator[Hit]:
    seen: set[int] = set()
    for name, column in sorted(columns.items()):
        for number in np.flatnonzero(bad(column)).tolist():
            if number not in seen:
                yield Hit(number, name, float(column[number]))
            seen.add(number)


def _blank(survey: Survey, thresholds: Thresholds) -> Iterator[Hit]:
    pictures = survey.of("width")
    spreads = {name: column for name, column in survey.of("spread").items() if name in pictures and name != decode.MASK}
    return _where(spreads, lambda column: column <= thresholds.blank)


def _empty_text(survey: Survey, thresholds: Thresholds) -> Iterator[Hit]:
    return _where(survey.of("letters"), lambda column: column < thresholds.min_text)


def _non_finite(survey: Survey, thresholds: Thresholds) -> Iterator[Hit]:
    return _where(survey.of("nonfinite"), lambda column: column > 0)


def _constant(survey: Survey, thresholds: Thresholds) -> Iterator[Hit]:
    series = survey.of("steps")
    spreads = {name: column for name, column in survey.of("spread").items() if name in series}
    return _where(spreads, lambda column: column == 0)


def _duplicates(survey: Survey, thresholds: Thresholds, among: np.ndarray | None = None) -> Iterator[Hit]:
    firsts = first_of_equals(survey, thresholds.by, among)
    for number in np.flatnonzero(firsts != np.arange(len(firsts))).tolist():
        yield Hit(number, None, survey.index.row(int(firsts[number]))[1].key)


RULES = {
    "damaged": Rule("cannot be read or decoded", _damaged),
    "blank": Rule("a picture whose grey values have a standard deviation of at most {blank} (of 255)", _blank),
    "empty-text": Rule("a text of fewer than {min_text} letters and digits", _empty_text),
    "non-finite": Rule("a series with NaN or infinite numbers", _non_finite),
    "constant-series": Rule("a series that never changes in any channel", _constant),
    "duplicates": Rule("an earlier sample has the same bytes in {by}", _duplicates),
}


def meaning(name: str, thresholds: Thresholds) -> str:
    """What rule `name` says, in words."""
    by = ", ".join(thresholds.by) or "all fields"
    return RULES[name].meaning.format(blank=thresholds.blank, min_text=thresholds.min_text, by=by)


def first_of_equals(survey: Survey, fields: Sequence[str], among: np.ndarray | None = None) -> np.ndarray:
    """int64 [N]: the first sample, in the order of the index, that agrees in `fields` (default: in all), so its own
    number where a sample is the first, lacks one of `fields`, is damaged or not `among` (bool [N]) those compared."""
    unknown = [name for name in fields if name not in survey.digests]
    if unknown:
        there = ", ".join(sorted(survey.digests))
        raise DataError(f"duplicates by {unknown[0]!r}: no sample has this field; there are {there}")
    size = len(survey.index)
    compared = np.ones(size, dtype=bool) if among is None else among.copy()
    compared[list(survey.damage)] = False
    for name in fields:
        compared &= ~np.isnan(survey.of("bytes")[name])
    numbers, firsts = np.flatnonzero(compared), np.arange(size)
    if not len(numbers):
        return firsts
    digests = np.concatenate([survey.digests[name] for name in (fields or sorted(survey.digests))], axis=1)[numbers]
    order = np.lexsort(digests.T)  # stable: of equal ones the earliest comes first
    digests = digests[order]
    starts = np.concatenate([[True], (digests[1:] != digests[:-1]).any(axis=1)])
    leader = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    firsts[numbers[order]] = numbers[order[leader]]
    return firsts


class Judged(NamedTuple):
    """Why a sample goes."""

    rule: str
    hit: Hit


def check_names(names: Sequence[str]) -> None:
    """Raises DataError where one of `names` is no rule."""
    unknown = sorted(set(names) - set(RULES))
    if unknown or not names:
        raise DataError(f"no rule {', '.join(map(repr, unknown))}; allowed are {', '.join(RULES)}")


def judge_samples(survey: Survey, names: Sequence[str], thresholds: Thresholds) -> list[Judged]:
    """Every sample that falls under one of the rules `names`, once for each, in the order of the index.

    Duplicates are sought among what the other rules leave, so the one that is kept is none that they drop. Raises
    DataError for unknown rules.
    """
    check_names(names)
    found = [
        Judged(name, hit) for name in RULES if name in names and name != "duplicates"
        for hit in RULES[name].find(survey, thresholds)
    ]  # fmt: skip
    if "duplicates" in names:
        left = np.ones(len(survey.index), dtype=bool)
        left[[verdict.hit.number for verdict in found]] = False
        found += [Judged("duplicates", hit) for hit in _duplicates(survey, thresholds, left)]
    return sorted(found, key=lambda verdict: verdict.hit.number)
