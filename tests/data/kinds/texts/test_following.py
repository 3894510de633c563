"""Every token of a text is asked once, in pieces that fit; characters that are put together again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bigssl.data.errors import DataError
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.kinds.texts.following import following_pieces, frame_of
from bigssl.data.kinds.vocabularies.characters import train_characters


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


def test_characters_are_put_together_again(tmp_path: Path) -> None:
    texts = ["Two words,\nand a line.", "é and e\u0301 are one", "  spaces  "]
    count = train_characters(texts, tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert count == len(tokenizer) == 5 + len(set("".join(texts).replace("\u0301", "")))
    ids = tokenizer(texts[0])["input_ids"]
    assert len(ids) == len(texts[0]) + 1 and ids[0] == tokenizer.cls_token_id and tokenizer.pad_token_id == 0
    for text in (texts[0], texts[2]):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer(texts[1])["input_ids"].count(tokenizer("é")["input_ids"][1]) == 2
    assert tokenizer("x~")["input_ids"][1:] == [tokenizer.unk_token_id] * 2
    begin, end = frame_of(tokenizer)
    assert (begin.tolist(), end.tolist()) == ([tokenizer.cls_token_id], [])
    first = (tmp_path / "tokenizer.json").read_bytes()
    train_characters(reversed(texts), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == first
    with pytest.raises(DataError, match="no characters"):
        train_characters([""], tmp_path / "none.json")
