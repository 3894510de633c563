"""Texts are rewritten by rule, and nothing else is."""

from __future__ import annotations

import json

import pytest

from bigssl.data.errors import DataError
from bigssl.data.tools.texts.rewriting import changing, check_rewrites, rewritten

MESSY = "\ufeffe\u0301 ﬁ\x00ne\r\nＡ²\u200d\u200c\u2028x\ttab\x85\ufffe"
TIDY = {
    ("controls",): "e\u0301 ﬁne\nＡ²\u200d\u200c\nx\ttab\n",
    ("nfc",): "\ufeffé ﬁ\x00ne\r\nＡ²\u200d\u200c\u2028x\ttab\x85\ufffe",
    ("controls", "nfkc"): "é fine\nA2\u200d\u200c\nx\ttab\n",
}


@pytest.mark.parametrize("names", list(TIDY))
def test_each_rule_does_what_it_says(names: tuple[str, ...]) -> None:
    # the first byte order mark is no part of the text (`decode.text`)
    assert rewritten({"txt": f"_{MESSY}".encode()}, names)["txt"].decode() == f"_{TIDY[names]}"
    assert rewritten({"a.txt": MESSY.encode()}, ("nfkc", "controls")) == {"a.txt": TIDY["controls", "nfkc"].encode()}


def test_what_is_no_text_and_what_does_not_change_stays_byte_for_byte() -> None:
    facts = {"text": "e\u0301", "captions": ["e\u0301", 3], "label": "e\u0301", "n": 1.50}
    tidy = json.loads(rewritten({"json": json.dumps(facts).encode()}, ["nfc"])["json"])
    assert tidy == {"text": "é", "captions": ["é", 3], "label": "e\u0301", "n": 1.5}
    for fields in (
        {"json": b'{ "label": "e\xcc\x81",  "text": "plain" }', "jpg": b"e\xcc\x81", "txt": "\ufeffplain".encode()},
        {"json": b'[ "a",1, {"text": "e\xcc\x81"} ]'},
        {"json": b"17"},
    ):
        assert rewritten(fields, ["nfkc", "controls"]) == fields
    assert rewritten({"json": b'["\\u00b2", "x"]'}, ["nfkc"]) == {"json": b'["2","x"]'}
    assert rewritten({"json": '"e\u0301"'.encode()}, ["nfc"]) == {"json": '"é"'.encode()}


def test_what_each_rule_would_change_is_said_by_itself() -> None:
    assert changing({"txt": MESSY.encode()}) == ["controls", "nfc", "nfkc"]
    assert changing({"txt": "Ａ".encode(), "json": b'{"label": "e\xcc\x81"}'}) == ["nfkc"]
    assert changing({"txt": b"plain\n", "jpg": b"\x00"}) == []


def test_answers_that_stand_at_characters_are_not_moved() -> None:
    fields = {"txt": "e\u0301 so".encode(), "json": b'{"answers": {"text": ["so"], "answer_start": [3]}}'}
    with pytest.raises(DataError, match="its json has `answers`, which stand at characters of its txt"):
        rewritten(fields, ["nfc"])
    assert rewritten(fields | {"txt": b"e so"}, ["nfc"])["txt"] == b"e so"


@pytest.mark.parametrize(("names", "said"), [
    (["nfd"], "--rewrite nfd: no such rule; allowed: controls, nfc, nfkc"),
    (["nfc", "nfkc"], "nfkc does all that nfc does"),
])  # fmt: skip
def test_rules_that_cannot_be_followed_are_refused(names: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_rewrites(names)
