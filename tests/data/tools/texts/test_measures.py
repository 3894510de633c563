"""Words, scripts and lines of a text against counting by hand; near duplicates against all pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.kinds.words import words_in_text
from bigssl.data.tools.texts.lines import line_hashes, shared_shares, text_numbers
from bigssl.data.tools.texts.near import near_firsts, signature
from bigssl.data.tools.texts.scripts import check_scripts, letters_by_script


def test_words_are_runs_of_letters_and_characters_without_spaces() -> None:
    text = "Don't e\u0301clair 42nd, 我们 ok了 ไม่ x\u200dy"
    assert words_in_text(text) == ["Don", "t", "e\u0301clair", "42nd", "我", "们", "ok", "了", "ไ", "ม่", "x\u200dy"]
    assert words_in_text("") == words_in_text(" .,! ") == []


def test_letters_are_counted_by_script() -> None:
    text = "Straße 12 Привет 東京タワーの ｶﾞ ﬁ 한글 ไทย ²³ ..."
    assert letters_by_script(text) == {
        "latin": 7, "cyrillic": 6, "han": 2, "katakana": 5, "hiragana": 1, "hangul": 2, "thai": 3,
    }  # fmt: skip
    check_scripts(["latin", "han", "devanagari"])
    with pytest.raises(DataError, match="--script latn: no letter of unicode is in it; .*; nearest: latin"):
        check_scripts(["latn"])


def test_numbers_of_a_text_are_those_of_a_count_by_hand() -> None:
    text = "• Home\n\n• Home\r\n  - More #tags ...\n12 34 — see 我们…\n"
    numbers = text_numbers(text)
    assert numbers == pytest.approx({
        "words": 9,  # Home Home More tags 12 34 see 我 们
        "symbols": 3 / 9,  # one # and two ellipses
        "lettered": 6 / 13,  # • Home • Home - More #tags ... 12 34 — see 我们…
        "bullets": 3 / 4, "ellipses": 2 / 4, "repeated": 1 / 4, "line": (6 + 6 + 16 + 15) / 4,
    })  # fmt: skip
    assert set(text_numbers("").values()) == {0}


def test_lines_that_other_texts_have_are_boilerplate() -> None:
    foot = "all rights reserved"
    texts = [f"{name}\n{foot}\n" for name in "abc"] + ["a\nall rights reserved", "x\ny", "x\nz", ""]
    shares = shared_shares([line_hashes(text) for text in texts], 3)
    assert shares.tolist() == [0.5, 0.5, 0.5, 0.5, 0, 0, 0]
    copies = [line_hashes("only\nthis")] * 5
    assert shared_shares(copies, 3).tolist() == [0] * 5


def sequences(text: str) -> set[tuple[str, ...]]:
    words = words_in_text(text.casefold())
    return {tuple(words[n : n + 5]) for n in range(max(1, len(words) - 4))}


def likeness(one: str, other: str) -> float:
    a, b = sequences(one), sequences(other)
    return len(a & b) / len(a | b)


def test_near_duplicates_are_those_of_all_pairs() -> None:
    """Copies of 300 words with a few changed; those within .08 of the border may fall on either side."""
    pytest.importorskip("datasketch")
    rng = np.random.default_rng(0)
    texts: list[str] = []
    for base in range(6):
        words = [f"w{n}" for n in rng.integers(0, 500, 300)]
        for changes in (0, 2, 5, 20):
            changed = list(words)
            for place in rng.integers(0, 300, changes):
                changed[place] = f"new{rng.integers(1000)}"
            texts.append(" ".join(changed).title() + "!" * base)
    order = rng.permutation(len(texts))
    texts = [texts[n] for n in order]
    signatures = {n: signature(text) for n, text in enumerate(texts)}
    dropped = dict(near_firsts({n: found for n, found in signatures.items() if found is not None}, 0.8))
    for one, other in combinations(range(len(texts)), 2):
        like = likeness(texts[one], texts[other])
        if like > 0.88:
            assert one in dropped or other in dropped
    for number, first in dropped.items():
        assert first < number and first not in dropped and likeness(texts[first], texts[number]) > 0.72
    assert 8 <= len(dropped) <= 14


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet="ab 我é,\n", max_size=60))
def test_a_signature_is_of_the_words_alone(text: str) -> None:
    pytest.importorskip("datasketch")
    found, same = signature(text), signature(text.upper().replace(" ", " . "))
    assert (found is None) == (not words_in_text(text))
    assert found is None or same is not None and (found.dtype, found.shape) == (np.uint32, (128,)) and (
        found == same).all()  # fmt: skip
