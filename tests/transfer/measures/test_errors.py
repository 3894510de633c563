"""Edit distance against the recursion of its definition, and known answers."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.transfer.measures.errors import Edits, character_edits, edit_distance, error_rate, word_edits


@settings(max_examples=80, deadline=None)
@given(st.text("ab c", max_size=7), st.text("ab c", max_size=7))
def test_it_is_the_shortest_way_from_one_text_to_the_other(one: str, other: str) -> None:
    @cache
    def slow(first: int, second: int) -> int:
        if not first or not second:
            return first + second
        return min(slow(first - 1, second) + 1, slow(first, second - 1) + 1,
                   slow(first - 1, second - 1) + (one[first - 1] != other[second - 1]))  # fmt: skip

    assert edit_distance(one, other) == slow(len(one), len(other))


def test_rates_are_of_all_texts_together() -> None:
    assert character_edits("sitting", "kitten") == Edits(3, 7)
    assert word_edits("the cat  sat", "cat sat down") == Edits(2, 3)
    assert error_rate([Edits(1, 10), Edits(3, 2)]) == pytest.approx(4 / 12)  # not the mean of .1 and 1.5
    assert word_edits("", "a b") == Edits(2, 0)
    assert error_rate([Edits(0, 0)]) != error_rate([Edits(0, 0)])  # NaN: nothing was to be heard
