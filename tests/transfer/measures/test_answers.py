"""EM and F1 of answers: cases worked out by hand from SQuAD's definition, and a second way of counting."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigssl.transfer.measures.answers import answer_f1, exact_match, plain_answer


@pytest.mark.parametrize("text, plain", [
    ("The  Eiffel-Tower, in\tParis.", "eiffeltower in paris"), ("a theory of an apple", "theory of apple"),
    ("THE", ""), ("’s café", "’s café"), ("A.", ""),
])  # fmt: skip
def test_answers_are_compared_plain(text: str, plain: str) -> None:
    assert plain_answer(text) == plain


@pytest.mark.parametrize("found, answers, match, f1", [
    ("the cat", ["Cat!"], 1, 1),
    ("a black cat", ["cat", "the black cat sat"], 0, 0.8),  # 2 of 2 found, 2 of 3 wanted
    ("cat cat dog", ["cat"], 0, 0.5),  # one of the cats counts
    ("", [], 1, 1), ("cat", [], 0, 0), ("", ["cat"], 0, 0), ("the", ["cat"], 0, 0),
    ("cat", ["the", "cat"], 1, 1),  # an answer without a word is none, where there are others
    ("", ["the"], 1, 1),
])  # fmt: skip
def test_known_answers(found: str, answers: list[str], match: float, f1: float) -> None:
    assert exact_match(found, answers) == match and answer_f1(found, answers) == pytest.approx(f1)


def by_removal(found: list[str], wanted: list[str]) -> float:
    """2PR / (P + R), each word wanted crossed out once."""
    left, same = list(wanted), 0
    for word in found:
        if word in left:
            left.remove(word)
            same += 1
    if not same:
        return float(not found and not wanted)
    precision, recall = same / len(found), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


words = st.lists(st.sampled_from(["x", "y", "z"]), max_size=6)


@given(words, st.lists(words.filter(bool), min_size=1, max_size=3))
def test_f1_is_that_of_words_crossed_out(found: Sequence[str], answers: list[list[str]]) -> None:
    best = max(by_removal(list(found), each) for each in answers)
    assert answer_f1(" ".join(found), [" ".join(each) for each in answers]) == pytest.approx(best)
