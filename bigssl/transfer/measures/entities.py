"""Entities in tagged text: F1 as the script of the CoNLL-2000 and 2003 shared tasks has it (Tjong Kim Sang and
Buchholz 2000): an entity counts where its first token, its last and its type are right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE, BEGIN, INSIDE = "O", "BS", "IE"  # B- and I-, and of BIOES S- (single) and E- (end)


class Matches(NamedTuple):
    """Of some tokens: entities that are right, that were found, that there are."""

    right: int
    found: int
    wanted: int


def are_entities(tags: Iterable[str]) -> bool:
    """Whether these different tags are O and B-TYPE, I-TYPE (E-, S-) of some types."""
    others = set(tags) - {OUTSIDE}
    return bool(others) and all(tag[:1] in BEGIN + INSIDE and tag[1:2] == "-" and len(tag) > 2 for tag in others)


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first token, one behind the last, type) of each. An entity begins at B or S, at I or E behind another type or
    none (as IOB1 has it), and ends before the next one, before O, and after E or S."""
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        letter, _, own = tag.partition("-")
        before = tags[place - 1][:1] if place else OUTSIDE
        goes_on = bool(kind) and letter in ("I", "E") and own == kind and before not in ("E", "S")
        if goes_on:
            continue
        if kind:
            found.add((start, place, kind))
        start, kind = place, own if letter != OUTSIDE else ""
    return found


def matches(found: Sequence[str], wanted: Sequence[str]) -> Matches:
    """Of one text, tag by tag. Raises ValueError for another number of tags."""
    if len(found) != len(wanted):
        raise ValueError(f"{len(found)} tags found, {len(wanted)} wanted")
    mine, theirs = entities(found), entities(wanted)
    return Matches(len(mine & theirs), len(mine), len(theirs))


def entity_f1(records: Sequence[Matches]) -> float:
    """2 right / (found + wanted) over all texts (micro); 0 where there are none of either."""
    both = sum(each.found + each.wanted for each in records)
    return 2 * sum(each.right for each in records) / both if both else 0.0
