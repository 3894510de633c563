"""Sounds at another speed, without bands and stretches; each by what it has to do to tones."""

from __future__ import annotations

import numpy as np
import pytest

from bigssl.data.kinds.sound.augment import SoundAugmentConfig, at_speed, augmented, without_bands

RATE = 8000
NOTHING = {"speed": 0.0, "bands": 0, "gaps": 0}


def tone(hertz: float, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE).astype(np.float32)


def loudest(values: np.ndarray) -> float:
    """Hertz."""
    return float(np.abs(np.fft.rfft(values, 4 * RATE)).argmax()) / 4


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_speed_moves_length_and_pitch(factor: float) -> None:
    found = at_speed(tone(440), factor)
    assert len(found) == round(4000 / factor) and found.dtype == np.float32
    assert loudest(found) == pytest.approx(440 * factor, rel=0.01)


def test_what_lies_in_a_band_is_gone_and_the_rest_stays() -> None:
    mel = np.log1p(1000 / 700) / np.log1p(RATE / 2 / 700)
    low, high = tone(250), tone(1000)
    found = without_bands(low + high, RATE, [(mel - 0.03, mel + 0.03)])
    np.testing.assert_allclose(found[200:-200], low[200:-200], atol=0.02)


def test_each_change_is_drawn_and_bounded() -> None:
    values, lengths, gone = tone(300), set(), []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        lengths.add(len(augmented(values, RATE, SoundAugmentConfig(**NOTHING | {"speed": 0.1}), rng)))
        gapped = augmented(values, RATE, SoundAugmentConfig(**NOTHING | {"gaps": 1, "gap": 0.2}), rng)
        gone.append(int((gapped != values).sum()))
    assert len(lengths) > 30 and min(lengths) >= 4000 / 1.1 - 1 and max(lengths) <= 4000 * 1.1 + 1
    assert 0.05 * 4000 < np.mean(gone) < 0.15 * 4000 and max(gone) <= 0.2 * 4000 + 1
    same = augmented(values, RATE, SoundAugmentConfig(**NOTHING), np.random.default_rng(0))
    np.testing.assert_array_equal(same, values)
