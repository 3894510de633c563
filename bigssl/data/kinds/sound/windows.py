"""What a task makes of a sound before a network hears it: silence cut off, a window, one loudness or another.

    float32 [T, C] ── mean of the channels ── trimmed ── a window of the backbone's length, or the sound and 0 behind it
"""

from __future__ import annotations

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds.sound.augment import SoundAugmentConfig, augmented
from bigssl.data.sample import Sample

FLOOR = 1e-4  # of full scale, -80 dB: a sound that is nowhere louder is silence
QUIET = 40.0  # dB below the loudest moment of a sound, where it counts as silence
FULL = 1 - 2**-14  # of full scale; two such values in a row are cut off, not met by chance
_MOMENT = 0.01  # seconds


def trimmed(values: np.ndarray, rate: int, quiet: float = QUIET) -> np.ndarray:
    """float32 [T, C] without the silence before and behind it: from the first to the last moment of 10 ms whose energy
    is less than `quiet` dB below that of the loudest moment, with a moment on each side. Nothing inside is cut.

    Raises:
        DataError: no value is above -80 dB of full scale.
    """
    peak = float(np.abs(values).max(initial=0.0))
    if peak < FLOOR:
        raise DataError(f"silence: none of {len(values)} frames is above {FLOOR:g} of full scale (the loudest: "
                        f"{peak:.1e})")  # fmt: skip
    size = max(1, round(rate * _MOMENT))
    power = np.square(values.astype(np.float64)).sum(1)
    power = np.pad(power, (0, -len(power) % size)).reshape(-1, size).sum(1)
    loud = np.flatnonzero(power > power.max() * 10 ** (-quiet / 10))
    return values[max(0, loud[0] - 1) * size : (loud[-1] + 2) * size]


def clipped(values: np.ndarray) -> float:
    """Share of the values of a sound [T, C] that are cut off: at full scale, and so is one beside them."""
    full = np.abs(values) >= FULL
    beside = np.zeros_like(full)
    beside[1:] |= full[:-1]
    beside[:-1] |= full[1:]
    return float((full & beside).mean()) if values.size else 0.0


def window(values: np.ndarray, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [length], int64 [length]) of a sound [T]: any stretch of a longer one, 0 behind a shorter one; the
    second is 0 there."""
    if len(values) > length:
        begin = int(rng.integers(len(values) - length + 1))
        values = values[begin : begin + length]
    mask = (np.arange(length) < len(values)).astype(np.int64)
    return np.pad(values, (0, length - len(values))).astype(np.float32, copy=False), mask


def sound_of(sample: Sample, rate: int, length: int, rng: np.random.Generator, *, quiet: float | None = QUIET,
             augment: SoundAugmentConfig | None = None) -> dict[str, np.ndarray]:
    """audio float32 [length] and audio_mask int64 [length] of the sound of a sample, one channel (the mean of all) at
    `rate`, a window that `rng` draws of a longer one.

    Args:
        quiet: as of `trimmed`; None: silence before and behind it stays.
        augment: how it is changed, before the window is drawn; None: not.
    Raises:
        DataError: there is no sound, it cannot be read, or it is silence from beginning to end.
    """
    data = decode.field(sample, decode.AUDIO)
    try:
        values, _ = decode.audio(data, rate=rate, mono=True)
        cut = trimmed(values, rate, quiet or QUIET)  # also where it is not wanted: of silence there is nothing to learn
    except DataError as error:
        raise DataError(f"{sample.where}: {error}") from error
    sound = (values if quiet is None else cut)[:, 0]
    sound = sound if augment is None else augmented(sound, rate, augment, rng)
    audio, mask = window(sound, length, rng)
    return {"audio": audio, "audio_mask": mask}
