"""Sounds at another speed, with bands of frequencies and stretches of time left out: SpecAugment (Park et al. 2019,
arXiv 1904.08779) and speed perturbation (Ko et al. 2015) on the waveform, which every network takes."""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from bigssl.config.section import Section


class SoundAugmentConfig(Section):
    """What of a sound is changed, and by how much."""

    speed: float = Field(0.1, ge=0, lt=1, description="faster and higher, or slower and lower, by this share at most")
    bands: int = Field(1, ge=0, description="bands of frequencies that are left out")
    band: float = Field(0.15, gt=0, lt=1, description="width of each at most, as a share of the mel scale")
    gaps: int = Field(1, ge=0, description="stretches of time that are left out")
    gap: float = Field(0.1, gt=0, lt=1, description="length of each at most, as a share of the sound")


def augmented(values: np.ndarray, rate: int, config: SoundAugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """float32 [T] at `rate` -> float32 [T'], T' between T / (1 + speed) and T · (1 + speed)."""
    if config.speed:
        values = at_speed(values, math.exp(rng.uniform(-1, 1) * math.log1p(config.speed)))
    if config.bands:
        values = without_bands(values, rate, [_stretch(config.band, rng) for _ in range(config.bands)])
    for _ in range(config.gaps):
        begin, end = _stretch(config.gap, rng)
        values = values.copy()
        values[round(begin * len(values)) : round(end * len(values))] = 0
    return values


def at_speed(values: np.ndarray, factor: float) -> np.ndarray:
    """[T] -> [T / factor]: as if played `factor` times as fast, pitch included; linear between samples."""
    count = max(1, round(len(values) / factor))
    places = np.linspace(0, len(values) - 1, count)
    return np.interp(places, np.arange(len(values)), values).astype(np.float32)


def without_bands(values: np.ndarray, rate: int, bands: list[tuple[float, float]]) -> np.ndarray:
    """[T] with the spectrum of the whole sound 0 in each band (low, high), shares of the mel scale up to rate / 2."""
    spectrum = np.fft.rfft(values)
    frequencies = np.linspace(0, rate / 2, len(spectrum))
    mel = np.log1p(frequencies / 700) / math.log1p(rate / 2 / 700)
    for low, high in bands:
        spectrum[(mel >= low) & (mel < high)] = 0
    return np.fft.irfft(spectrum, len(values)).astype(np.float32)


def _stretch(widest: float, rng: np.random.Generator) -> tuple[float, float]:
    """(begin, end) within 0 to 1, of a width between 0 and `widest`."""
    width = rng.uniform(0, widest)
    begin = rng.uniform(0, 1 - width)
    return begin, begin + width
