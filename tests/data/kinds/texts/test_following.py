"""Every token of a text is asked once, in pieces that fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bigssl
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.kinds.texts.following import following_pieces, frame_of

DEMO = Path(bigssl.__file__).parent / "demo"


@pytest.mark.parametrize("begin", [[], [1], [1, 2]])
@pytest.mark.parametrize("end", [[], [9]])
def test_every_token_is_asked_once_after_what_stands_before_it(begin: list[int], end: list[int]) -> None:
    length, ends = 5, (np.array(begin, np.int64), np.array(end, np.int64))
    for size in range(14):
        ids = list(range(100, 100 + size))
        pieces = list(following_pieces(np.array(ids, np.int64), *ends, length))
        text, asked = ids + end * bool(ids), []
        for shown, labels in pieces:
            assert len(shown) == len(labels) <= length and shown.dtype == labels.dtype == np.int64
            assert shown[: len(begin)].tolist() == begin
            for place in np.flatnonzero(labels != -100):
                number = text.index(labels[place])
                before = text[number - 1] if number else begin[-1]
                assert shown[place] == before
                asked.append(int(labels[place]))
        assert asked == (text if begin else text[1:])
        full = [len(shown) for shown, _ in pieces[:-1]]
        assert full == [length] * len(full), "only the last piece is short"


def test_what_a_tokenizer_puts_around_a_text() -> None:
    tokenizer = load_tokenizer(DEMO / "tokenizer.json")
    begin, end = frame_of(tokenizer)
    assert (begin.tolist(), end.tolist()) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
