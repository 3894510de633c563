"""By which rules a sample counts as worthless, and which samples those are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from bigssl.config.errors import nearest
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds.sound.windows import FLOOR
from bigssl.data.tools.survey import Survey
from bigssl.data.tools.texts.rules import TEXT_RULES
from bigssl.data.tools.texts.scripts import check_scripts
from bigssl.data.tools.verdicts import Hit, Rule, Thresholds


def _damaged(survey: Survey, thresholds: Thresholds, left: np.ndarray) -> Iterator[Hit]:
    for number, cause in sorted(survey.damage.items()):
        yield Hit(number, None, cause)


def _where(columns: dict[str, np.ndarray], bad: Callable[[np.ndarray], np.ndarray]) -> Iterator[Hit]:
    seen: set[int] = set()
    for name, column in sorted(columns.items()):
        for number in np.flatnonzero(bad(column)).tolist():
            if number not in seen:
                yield Hit(number, name, float(column[number]))
            seen.add(number)


def _blank(survey: Survey, thresholds: Thresholds, left: np.ndarray) -> Iterator[Hit]:
    pictures = survey.of("width")
    spreads = {name: column for name, column in survey.of("spread").items() if name in pictures and name != decode.MASK}
    return _where(spreads, lambda column: column <= thresholds.blank)


def _empty_text(survey: Survey, thresholds: Thresholds, left: np.ndarray) -> Iterator[Hit]:
    return _where(survey.of("letters"), lambda column: column < thresholds.min_text)


def _non_finite(survey: Survey, thresholds: Thresholds, left: np.ndarray) -> Iterator[Hit]:
    return _where(survey.of("nonfinite"), lambda column: column > 0)


def _constant(survey: Survey, thresholds: Thresholds, left: np.ndarray) -> Iterator[Hit]:
    series = survey.of("steps")
    spreads = {name: column for name, column in survey.of("spread").items() if name in series}
    return _where(spreads, lambda column: column == 0)


def _still_channels(survey: Survey, thresholds: Thresholds, left: np.ndarray) -> Iterator[Hit]:
    for number, channels in sorted(survey.constant.items()):
        yield Hit(number, None, f"channel{'s' if len(channels) > 1 else ''} {', '.join(map(str, channels))}")


def _silent(survey: Survey, thresholds: Thresholds, left: np.ndarray) -> Iterator[Hit]:
    return _where(survey.of("peak"), lambda column: column < FLOOR)


def _duplicates(survey: Survey, thresholds: Thresholds, left: np.ndarray) -> Iterator[Hit]:
    firsts = first_of_equals(survey, thresholds.by, left)
    for number in np.flatnonzero(firsts != np.arange(len(firsts))).tolist():
        yield Hit(number, None, survey.index.row(int(firsts[number]))[1].key)


RULES = {
    "damaged": Rule("cannot be read or decoded", _damaged),
    "blank": Rule("a picture whose grey values have a standard deviation of at most {blank} (of 255)", _blank),
    "empty-text": Rule("a text of fewer than {min_text} letters and digits", _empty_text),
    "non-finite": Rule("a series with NaN or infinite numbers", _non_finite),
    "constant-series": Rule("a series that never changes in any channel", _constant),
    "still-channels": Rule("a series of which some channels never change, others do", _still_channels),
    "silent": Rule(f"a sound that is nowhere above {FLOOR:g} of full scale", _silent),
    **{name: rule for name, rule in TEXT_RULES.items() if name != "near-duplicates"},
    "duplicates": Rule("an earlier sample has the same bytes in {by}", _duplicates),
    "near-duplicates": TEXT_RULES["near-duplicates"],
}
COMPARING = ("duplicates", "near-duplicates")  # sought among what the others leave, in this order


def meaning(name: str, thresholds: Thresholds) -> str:
    """What rule `name` says, in words."""
    rule, by, scripts = RULES[name], ", ".join(thresholds.by) or "all fields", ", ".join(thresholds.scripts)
    at = thresholds.at.get(name, rule.default)
    return rule.meaning.format(blank=thresholds.blank, min_text=thresholds.min_text, by=by, at=at,
                               scripts=scripts or "of --script")  # fmt: skip


def check_thresholds(thresholds: Thresholds) -> None:
    """Raises DataError for a threshold of a rule that has none, or that is no share, and for an unknown script."""
    with_one = [name for name, rule in RULES.items() if rule.default is not None]
    for name, value in thresholds.at.items():
        if name not in with_one:
            raise DataError(f"--at {name}: allowed: {', '.join(with_one)}{nearest(name, with_one)}")
        low, high = RULES[name].allowed
        if not low <= value <= high:
            raise DataError(f"--at {name}={value:g}: allowed: {low:g} {'or more' if high == inf else f'to {high:g}'}")
    check_scripts(thresholds.scripts)


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
        which = f"no rule {', '.join(map(repr, unknown))}" if unknown else "no rule is given"
        raise DataError(f"{which}; allowed are {', '.join(RULES)}")


def judge_samples(survey: Survey, names: Sequence[str], thresholds: Thresholds) -> list[Judged]:
    """Every sample that falls under one of the rules `names`, once for each, in the order of the index.

    Duplicates are sought among what the other rules leave, so the one that is kept is none that they drop. Raises
    DataError for unknown rules, and for those that cannot be asked.
    """
    check_names(names)
    refuse_unasked(names, thresholds)
    left, found = np.ones(len(survey.index), dtype=bool), list[Judged]()
    for name in [*(name for name in RULES if name not in COMPARING), *COMPARING]:
        if name in names:
            if name in COMPARING:
                left[[verdict.hit.number for verdict in found]] = False
            found += [Judged(name, hit) for hit in RULES[name].find(survey, thresholds, left)]
    return sorted(found, key=lambda verdict: verdict.hit.number)


def refuse_unasked(names: Sequence[str], thresholds: Thresholds) -> None:
    """Raises DataError where one of the rules `names` cannot be asked: a package is missing, or what it is about."""
    for name in names:
        if why := RULES[name].missing(thresholds):
            raise DataError(f"rule {name} {why}")
