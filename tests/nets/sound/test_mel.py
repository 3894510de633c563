"""Log-mel spectra and cepstra against loops in float64, the filters of transformers, and scipy's DCT."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.fft import dct
from transformers.audio_utils import mel_filter_bank

from bigssl.nets.sound.mel import QUIETEST, cepstra, log_mel, mel_filters

RATE = 8000


@pytest.mark.parametrize(("bins", "size"), [(20, 256), (13, 400)])
def test_filters_are_those_of_transformers(bins: int, size: int) -> None:
    theirs = mel_filter_bank(size // 2 + 1, bins, 0.0, RATE / 2, RATE, norm=None, mel_scale="htk")
    np.testing.assert_allclose(mel_filters(bins, size, RATE).numpy(), theirs, atol=1e-5)


def test_spectra_in_loops() -> None:
    sounds = np.random.default_rng(0).normal(size=(2, 530))
    got = log_mel(torch.from_numpy(sounds), 12, RATE, 200, 80).numpy()
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * n / 200) for n in range(200)])
    filters = mel_filters(12, 256, RATE).double().numpy()
    assert got.shape == (2, (530 - 200) // 80 + 1, 12) and got.dtype == np.float32
    for b in range(2):
        for f in range(got.shape[1]):
            piece = sounds[b, 80 * f : 80 * f + 200] * window
            waves = [np.exp(-2j * np.pi * k * np.arange(200) / 256) for k in range(129)]
            power = np.array([abs(piece @ wave) ** 2 for wave in waves]) / (window @ window)
            np.testing.assert_allclose(got[b, f], np.log(power @ filters + QUIETEST), rtol=1e-4, atol=1e-4)


def test_noise_of_variance_one_has_power_one_at_each_frequency() -> None:
    noise = torch.randn(40, 4000, generator=torch.Generator().manual_seed(0))
    filters = mel_filters(10, 256, RATE)
    power = log_mel(noise, 10, RATE, 200, 100).exp().mean((0, 1)) / filters.sum(0)
    torch.testing.assert_close(power, torch.ones(10), atol=0.1, rtol=0)


def test_cepstra_are_the_dct() -> None:
    spectra = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    expected = dct(spectra.double().numpy(), type=2, norm="ortho", axis=-1)[..., :7]
    np.testing.assert_allclose(cepstra(spectra, 7).numpy(), expected, atol=1e-5)
