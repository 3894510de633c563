"""Sounds before a network hears them: trimmed by energy, windows, what is cut off at full scale."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.kinds.sound.windows import clipped, sound_of, trimmed, window
from bigssl.data.sample import Sample

soundfile = pytest.importorskip("soundfile")
RATE = 8000


def between(before: int, loud: int, behind: int, level: float = 0.0) -> np.ndarray:
    """[T, 1]: so many 10 ms of noise at `level`, of a tone at full scale, and of noise again."""
    rng, size = np.random.default_rng(0), RATE // 100
    noise = lambda count: rng.normal(0, 1, count * size) * level  # noqa: E731 - twice, beside each other
    tone = np.sin(np.arange(loud * size) / 3)
    return np.concatenate([noise(before), tone, noise(behind)])[:, None].astype(np.float32)


@given(before=st.integers(0, 30), loud=st.integers(1, 20), behind=st.integers(0, 30),
       level=st.sampled_from([0.0, 1e-5, 1e-3]))  # fmt: skip
def test_what_is_far_below_the_loudest_is_cut_off_in_front_and_behind(
    before: int, loud: int, behind: int, level: float
) -> None:
    values, size = between(before, loud, behind, level), RATE // 100
    kept = trimmed(values, RATE)
    front = max(0, before - 1) * size  # a moment on each side
    np.testing.assert_array_equal(kept, values[front : (before + loud + 1) * size])


def test_pauses_inside_and_noise_that_is_not_quiet_stay() -> None:
    word, pause = between(0, 5, 0), np.zeros((40 * RATE // 100, 1), np.float32)
    values = np.concatenate([word, pause, word])
    np.testing.assert_array_equal(trimmed(values, RATE), values)
    noisy = between(20, 5, 20, level=0.1)  # 17 dB below the tone
    np.testing.assert_array_equal(trimmed(noisy, RATE), noisy)


@pytest.mark.parametrize("values", [np.zeros((400, 2)), np.full((400, 1), 5e-5), np.zeros((0, 1))])
def test_silence_is_an_error_that_says_so(values: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"silence: none of \d+ frames is above 0.0001 of full scale"):
        trimmed(values.astype(np.float32), RATE)


def test_values_at_full_scale_count_as_cut_off_in_company_only() -> None:
    values = np.array([0, 1, 0.5, 1, 1, 0.2, -1, -1, -1, 0], np.float32)[:, None]
    assert clipped(values) == pytest.approx(0.5)
    assert clipped(values * 0.99) == 0 and clipped(np.zeros((0, 1), np.float32)) == 0
    assert clipped(np.stack([values[:, 0], 0 * values[:, 0]], 1)) == pytest.approx(0.25)


@given(count=st.integers(1, 40), length=st.integers(1, 40), seed=st.integers(0, 9))
def test_a_window_is_a_stretch_of_the_sound_or_all_of_it_and_zeros(count: int, length: int, seed: int) -> None:
    values = np.arange(1, count + 1, dtype=np.float32)
    audio, mask = window(values, length, np.random.default_rng(seed))
    assert audio.dtype == np.float32 and mask.dtype == np.int64 and len(audio) == len(mask) == length
    heard = audio[mask == 1]
    assert len(heard) == min(count, length) and (audio[mask == 0] == 0).all() and mask[: len(heard)].all()
    np.testing.assert_array_equal(np.diff(heard), np.ones(len(heard) - 1))


def test_every_window_of_a_long_sound_is_drawn() -> None:
    rng = np.random.default_rng(0)
    begins = {window(np.arange(7, dtype=np.float32), 4, rng)[0][0] for _ in range(200)}
    assert begins == {0, 1, 2, 3}


def sample(values: np.ndarray, rate: int) -> Sample:
    file = io.BytesIO()
    soundfile.write(file, values, rate, format="WAV", subtype="FLOAT")
    return Sample("word", {"wav": file.getvalue()}, 0, 0, "a.tar", "speech")


def test_stereo_at_another_rate_becomes_one_channel_at_the_backbones() -> None:
    values = np.repeat(between(20, 20, 20), 2, 1) * np.float32([1.0, 0.5])
    found = sound_of(sample(values, RATE), 4000, 2000, np.random.default_rng(0))
    assert found["audio"].shape == (2000,) and found["audio_mask"].sum() in (21 * 40, 22 * 40, 23 * 40)
    assert np.abs(found["audio"]).max() == pytest.approx(0.75, abs=0.08)  # the mean of 1 and 1/2
    whole = sound_of(sample(values, RATE), 4000, 2400, np.random.default_rng(0), quiet=None)
    assert whole["audio_mask"].all()


def test_errors_name_the_sample() -> None:
    silent = sample(np.zeros(800), RATE)
    for quiet in (40.0, None):
        with pytest.raises(DataError, match="shard a.tar, sample 'word': silence"):
            sound_of(silent, RATE, 100, np.random.default_rng(0), quiet=quiet)
    with pytest.raises(DataError, match="sample 'word': no field flac or wav or ogg; it has txt"):
        sound_of(silent._replace(fields={"txt": b"word"}), RATE, 100, np.random.default_rng(0))
