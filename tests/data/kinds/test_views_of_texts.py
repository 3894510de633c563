"""Views of a text are a part of its words, in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigssl.data.kinds.words import view_of

TEXT = " ".join(f"w{n}" for n in range(40))


@given(st.text(max_size=60), st.floats(0.01, 1), st.floats(0, 0.99), st.integers(0, 1000))
def test_a_view_is_never_empty_and_holds_nothing_new(text: str, keep: float, leave_out: float, seed: int) -> None:
    view = view_of(text, np.random.default_rng(seed), keep=keep, leave_out=leave_out)
    assert bool(view) == bool(text)
    rest = iter(text)
    assert all(character in rest for character in view.strip()), "in order, of the text"


def test_words_are_kept_in_a_row_and_as_many_as_asked() -> None:
    rng, counts, begins = np.random.default_rng(0), [], []
    for _ in range(2000):
        words = [int(word[1:]) for word in view_of(TEXT, rng, keep=0.5, leave_out=0.0).split()]
        assert words == list(range(words[0], words[0] + len(words)))
        counts.append(len(words))
        begins.append(words[0])
    assert min(counts) == 20 and max(counts) == 40 and abs(np.mean(counts) - 30) < 0.6
    assert set(begins) >= set(range(15))


def test_the_right_share_is_left_out() -> None:
    rng = np.random.default_rng(1)
    kept = [len(view_of(TEXT, rng, keep=1.0, leave_out=0.3).split()) / 40 for _ in range(1000)]
    assert np.mean(kept) == pytest.approx(0.7, abs=3 * (0.21 / 40000) ** 0.5)


def test_scripts_without_spaces_are_taken_by_characters() -> None:
    text = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少"
    views = {view_of(text, np.random.default_rng(n), keep=0.5, leave_out=0.2) for n in range(50)}
    assert len(views) > 40 and all(len(view) < len(text) for view in views)
