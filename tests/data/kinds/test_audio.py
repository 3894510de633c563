"""Audio: float32 [T, C], resampled by a declared rule; what is cut off is found, also where libsndfile reads on."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from bigssl.config import limits
from bigssl.data.errors import DataError
from bigssl.data.kinds.audio import audio, codec_of

soundfile = pytest.importorskip("soundfile")
FORMATS = ("FLAC", "WAV", "OGG")


def tone(rate: int, hertz: float = 440, seconds: float = 0.5, channels: int = 2) -> np.ndarray:
    """[T, C]: a sine, quieter in each further channel."""
    time = np.arange(int(rate * seconds)) / rate
    return np.stack([np.sin(2 * np.pi * hertz * time) / (2 + c) for c in range(channels)], 1).astype(np.float32)


def encoded(values: np.ndarray, rate: int, form: str, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, format=form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", FORMATS)
def test_formats(form: str) -> None:
    values = tone(16_000)
    got, rate = audio(encoded(values, 16_000, form))
    assert (got.dtype, got.shape, rate) == (np.float32, values.shape, 16_000)
    assert np.abs(got - values).max() < (0.03 if form == "OGG" else 1 / 32_000)


def test_mono_is_the_mean() -> None:
    values = tone(8000)
    got, _ = audio(encoded(values, 8000, "WAV", subtype="FLOAT"), mono=True)
    np.testing.assert_allclose(got, values.mean(1, keepdims=True), atol=1e-7)


@pytest.mark.parametrize(("stored", "rate"), [(48_000, 16_000), (44_100, 16_000), (8000, 16_000)])
def test_resampling_gives_the_tone_at_the_other_rate(stored: int, rate: int) -> None:
    got, found = audio(encoded(tone(stored), stored, "WAV", subtype="FLOAT"), rate=rate)
    expected = tone(rate)
    assert found == rate and got.shape == expected.shape and got.dtype == np.float32
    inside = slice(200, -200)  # the filter sees silence beyond the ends
    assert np.abs(got[inside] - expected[inside]).max() < 2e-3


def test_resampling_keeps_out_what_the_rate_cannot_hold() -> None:
    got, _ = audio(encoded(tone(48_000, hertz=15_000), 48_000, "WAV", subtype="FLOAT"), rate=16_000)
    assert np.abs(got[200:-200]).max() < 2e-3


def test_a_codec_that_is_missing_is_named() -> None:
    """Of the container alone one could not tell what to convert."""
    wav = bytearray(encoded(tone(8000), 8000, "WAV"))
    place = wav.find(b"fmt ") + 8
    for number, name in ((0x2000, "AC-3"), (0x1234, "codec 0x1234")):
        wav[place : place + 2] = number.to_bytes(2, "little")
        with pytest.raises(DataError, match=f"undecodable audio of .*: {name}, of which libsndfile [0-9.]+ has no"):
            audio(bytes(wav))
    ogg = encoded(tone(8000, channels=1), 8000, "OGG", subtype="OPUS")
    begin = 27 + ogg[26]
    with pytest.raises(DataError, match="Speex, of which libsndfile"):
        audio(ogg[:begin] + b"Speex   " + ogg[begin + 8 :])
    assert codec_of(ogg) == "Opus" and codec_of(b"ID3\x04") == "MP3" and codec_of(b"no sound") == ""


@pytest.mark.parametrize("form", FORMATS)
def test_cut_off_anywhere(form: str) -> None:
    data = encoded(tone(16_000), 16_000, form)
    for keep in [*range(0, 100, 7), *range(100, len(data) - 1, len(data) // 20), len(data) - 1]:
        with pytest.raises(DataError, match=f"undecodable audio of {keep} bytes"):
            audio(data[:keep])


def test_a_wav_from_a_pipe_has_no_length() -> None:
    data = bytearray(encoded(tone(8000), 8000, "WAV"))
    place = data.index(b"data") + 4
    data[4:8] = data[place : place + 4] = b"\xff" * 4
    assert audio(bytes(data))[0].shape == (4000, 2)


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="undecodable audio of 8 bytes"):
        audio(b"no sound")
    with pytest.raises(DataError, match="0 of 0 frames"):
        audio(encoded(np.zeros((0, 1), np.float32), 8000, "WAV"))
    with pytest.raises(DataError, match="1 values that are not finite"):
        audio(encoded(np.array([0, np.nan], np.float32), 8000, "WAV", subtype="FLOAT"))
    small = limits.applied(limits.Limits(audio_values=100))
    with small, pytest.raises(DataError, match="4000 frames of 2 channels refused: 8000 .* limit audio_values"):
        audio(encoded(tone(8000), 8000, "FLAC"))


def test_without_soundfile_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DataError, match=r"audio needs soundfile .*pip install 'bigssl\[audio\]'"):
        audio(b"")
