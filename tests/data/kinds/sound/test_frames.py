"""Stretches of frames that are hidden: how many, where, and of too few none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.kinds.sound.frames import hidden_stretches


@given(frames=st.integers(3, 60), more=st.integers(0, 9), share=st.floats(0.05, 3), span=st.integers(2, 12),
       seed=st.integers(0, 99))  # fmt: skip
def test_two_frames_are_hidden_at_least_one_is_not_and_none_of_the_padding(
    frames: int, more: int, share: float, span: int, seed: int
) -> None:
    hidden = hidden_stretches(frames, frames + more, share, span, np.random.default_rng(seed))
    assert hidden.dtype == bool and hidden.shape == (frames + more,) and not hidden[frames:].any()
    assert 2 <= hidden.sum() < frames or (frames == 3 and hidden.sum() == 2)


def test_of_long_sounds_as_much_is_hidden_as_the_paper_says() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([hidden_stretches(749, 749, 0.65, 10, rng).mean() for _ in range(300)])
    assert share == pytest.approx(1 - (1 - 0.065) ** 10, abs=0.005)
    with pytest.raises(DataError, match="a sound of 2 frames; allowed: >= 3"):
        hidden_stretches(2, 2, 0.65, 10, rng)
