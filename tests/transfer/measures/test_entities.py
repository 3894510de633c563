"""Entities of tags: cases worked out by hand from conlleval's rules, and its own way of counting, token by token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.transfer.measures.entities import Matches, are_entities, entities, entity_f1, matches


@pytest.mark.parametrize("tags, found", [
    ("O B-P I-P O", {(1, 3, "P")}), ("B-P B-P I-P", {(0, 1, "P"), (1, 3, "P")}),
    ("I-P I-P O I-Q", {(0, 2, "P"), (3, 4, "Q")}),  # IOB1
    ("B-P I-Q I-Q", {(0, 1, "P"), (1, 3, "Q")}),  # another type begins
    ("S-P S-P B-Q I-Q E-Q E-Q", {(0, 1, "P"), (1, 2, "P"), (2, 5, "Q"), (5, 6, "Q")}),
    ("B-a-b I-a-b", {(0, 2, "a-b")}), ("O O", set()), ("", set()),
])  # fmt: skip
def test_known_entities(tags: str, found: set) -> None:
    assert entities(tags.split()) == found


def test_which_tags_are_entities() -> None:
    assert are_entities(["O", "B-PER", "I-PER"]) and are_entities(["S-X", "E-X"])
    assert not are_entities(["O"]) and not are_entities(["NOUN", "VERB"]) and not are_entities(["B-PER", "B"])
    assert not are_entities(["0", "1"]) and not are_entities([])


def boundary(before: str, tag: str, *, start: bool) -> bool:
    """startOfChunk and endOfChunk of conlleval for two neighbours, as its documentation lists them."""
    (one, kind), (two, other) = ((t.partition("-")[0], t.partition("-")[2]) for t in (before, tag))
    pairs = {("B", "B"), ("I", "B")} | ({("O", "B"), ("O", "I")} if start else {("B", "O"), ("I", "O")})
    return (one, two) in pairs or ((two if start else one) != "O" and kind != other)


def by_conlleval(found: list[str], wanted: list[str]) -> Matches:
    """The loop of the script: an entity is right where both begin together, go on alike and end together."""
    right = guessed = correct = 0
    inside, before = False, ("O", "O")
    for pair in [*zip(found, wanted, strict=True), ("O", "O")]:
        ends = [boundary(one, two, start=False) for one, two in zip(before, pair, strict=True)]
        kinds = [tag.partition("-")[2] for tag in pair]
        if inside and all(ends):
            inside, right = False, right + 1
        elif inside and (any(ends) or kinds[0] != kinds[1]):
            inside = False
        starts = [boundary(one, two, start=True) for one, two in zip(before, pair, strict=True)]
        inside = inside or (all(starts) and kinds[0] == kinds[1])
        guessed, correct, before = guessed + starts[0], correct + starts[1], pair
    return Matches(right, guessed, correct)


tags = st.sampled_from(["O", "B-P", "I-P", "B-Q", "I-Q"])


@given(st.lists(st.tuples(tags, tags), max_size=12))
@settings(max_examples=300)
def test_counts_are_those_of_the_script(pairs: list[tuple[str, str]]) -> None:
    found, wanted = [one for one, _ in pairs], [two for _, two in pairs]
    assert matches(found, wanted) == by_conlleval(found, wanted)


def test_f1_is_of_all_texts_together() -> None:
    assert entity_f1([Matches(1, 2, 1), Matches(2, 2, 5)]) == pytest.approx(2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6))
    assert entity_f1([Matches(0, 0, 0)]) == 0
