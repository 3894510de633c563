"""Answers are where the characters say, in every window; the best span is that of loops; what cannot be is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.sample import Sample
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.texts.answering import Question, best_spans, read_question, windows_of
from bigssl.transfer.texts.lexical import Lexical

CONTEXT = "Thing number 4 is red-ish, thing number 7 is green-ish; the warm cool thing number 9 is Fresh & New. " * 2


@pytest.mark.parametrize("length", [12, 24, 64])
@pytest.mark.parametrize("question", ["which thing", "thing number " * 20])
def test_each_window_holds_what_it_says(length: int, question: str, tokenizer: PreTrainedTokenizerFast) -> None:
    windows = windows_of(TextInput(tokenizer, length), 5, question, CONTEXT)
    seen = np.zeros(len(CONTEXT), bool)
    for window in windows:
        assert len(window.ids) <= length and window.number == 5 and window.open[0]
        for token, (begin, end) in zip(window.ids.tolist(), window.places.tolist(), strict=True):
            if begin >= 0:
                seen[begin:end] = True
                own = tokenizer.convert_ids_to_tokens(token).removeprefix("##")
                assert own in (CONTEXT[begin:end].lower(), "[UNK]")
    assert seen[[place for place, letter in enumerate(CONTEXT) if not letter.isspace()]].all(), "nothing is left out"
    begin = CONTEXT.index("green-ish")
    places = [window.answer(begin, begin + len("green-ish")) for window in windows]
    assert any(last for _, last in places)
    for window, (first, last) in zip(windows, places, strict=True):
        if last:
            assert CONTEXT[window.places[first, 0] : window.places[last, 1]] == "green-ish"
        else:
            whole = (window.places[:, 0] <= begin).any() and (window.places[:, 1] >= begin + len("green-ish")).any()
            assert not whole or window.places[window.places[:, 0] >= 0, 0].min() > begin


scores = st.lists(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.booleans()), min_size=2, max_size=9),
                  min_size=1, max_size=1)  # fmt: skip


@given(scores, st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_the_best_span_is_that_of_loops(rows: list[list[tuple[int, int, bool]]], longest: int) -> None:
    values = torch.tensor([[[one, other] if inside or not at else [-torch.inf] * 2
                            for at, (one, other, inside) in enumerate(row)] for row in rows]).float()  # fmt: skip
    for row, (odds, first, last) in zip(values.tolist(), best_spans(values, longest), strict=True):
        spans = {(i, j): row[i][0] + row[j][1] - sum(row[0]) for i in range(1, len(row))
                 for j in range(i, min(len(row), i + longest))}  # fmt: skip
        assert odds == max(spans.values())
        assert odds == -torch.inf or spans[first, last] == odds


def read(**changes: Any) -> Question:
    meta = {"question": "who", "context": "Anna saw Anna.", "answers": answers(["Anna"], [9])} | changes
    meta = {name: value for name, value in meta.items() if value is not None}
    fields = {"json": json.dumps(meta).encode(), "txt": b"Anna and Anna too"}
    return read_question(Sample("s", fields, 0, 0, "x.tar", "t"), "question", "context", "answers")


def answers(text: Any, start: Any) -> dict[str, Any]:
    return {"text": text, "answer_start": start}


def test_questions_are_read() -> None:
    assert read() == ("who", "Anna saw Anna.", ["Anna"], [9], 0)
    assert read(context=None).context == "Anna and Anna too", "the txt"
    assert read(answers=answers([], [])).answers == [] == read(answers=answers([""], [0])).answers
    assert read(answers=answers([" saw "], [4])) == ("who", "Anna saw Anna.", ["saw"], [5], 0)
    assert read(answers=answers(["Anna", "saw"], [8, 5])) == ("who", "Anna saw Anna.", ["Anna", "saw"], [9, 5], 1)


@pytest.mark.parametrize("changes, message", [
    ({"answers": answers(["Paul"], [0])}, "answer 'Paul' does not stand in the context"),
    ({"question": " "}, "question is empty; leave such samples out"), ({"context": ""}, "context is empty"),
    ({"answers": answers(["Anna"], [])}, "answers is .*; allowed: {text: .*one for each"),
    ({"answers": answers("Anna", [0])}, "answers is .*; allowed"), ({"answers": ["Anna"]}, "answers is list"),
    ({"question": None}, "no field 'question' in its json; it has answers, context"),
])  # fmt: skip
def test_what_is_no_question_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(**changes)


def test_a_window_without_room_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    assert windows_of(TextInput(tokenizer, 5), 0, "thing number", "thing number")
    with pytest.raises(DataError, match="length 4 has no room for a question and a text; allowed: >= 5"):
        windows_of(TextInput(tokenizer, 4), 0, "thing", "thing")


def test_answers_without_a_network() -> None:
    text = "Rain falls in June. The old bridge was built by Anna Berg in stone. Nobody paints it."
    lexical = Lexical([Question("?", text, ["Anna Berg"], [48]), Question("?", "Other words", [], [])])
    question = Question("Who built the old bridge?", text, [], [])
    assert lexical.first(question) == "Rain falls"
    assert lexical.sentence(question) == "The old bridge was built by Anna Berg in stone."
    assert lexical.near(question) == "by Anna", "two words beside those that are asked"
    assert lexical.near(Question("what", "", [], [])) == "" == lexical.sentence(Question("what", " ", [], []))
