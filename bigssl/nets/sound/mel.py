"""Log-mel spectra of sounds, and their cepstra (Davis and Mermelstein 1980), in torch, on the device.

    audio [B, T] ── windows (Hann), power spectrum ── mel filters (triangles) ── ln ── [B, F, bins] ── DCT ── cepstra
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bigssl_kernels.dispatch import exact

QUIETEST = 1e-6  # added to the power in a band before the logarithm


def mel_filters(bins: int, size: int, rate: int) -> Tensor:
    """float32 [size // 2 + 1, bins]: triangles of height 1, equally far apart on the mel scale 2595 log10(1 + f / 700)
    from 0 to rate / 2, over the frequencies of a spectrum of `size` samples."""
    return torch.tensor(_filters(bins, size, rate))


@exact
def log_mel(sounds: Tensor, bins: int, rate: int, seen: int, stride: int) -> Tensor:
    """float32 [B, F, bins] of sounds [B, T]: ln of the power in each band of windows of `seen` samples, `stride` apart,
    the first from the beginning; what does not fill a window is left out behind.

    Power is that of the window's spectrum divided by the sum of the window's squares: of white noise of variance 1 it
    is 1 at each frequency, whatever the window.
    """
    size = 1 << (seen - 1).bit_length()
    window = torch.hann_window(seen, device=sounds.device)
    power = torch.fft.rfft(sounds.float().unfold(1, seen, stride) * window, size).abs().square()
    return (power @ mel_filters(bins, size, rate).to(sounds.device) / window.square().sum() + QUIETEST).log()


def cepstra(spectra: Tensor, count: int) -> Tensor:
    """[B, F, count], the first coefficients of the orthonormal DCT-II of log-mel spectra [B, F, bins]."""
    bins = spectra.shape[-1]
    turns = torch.arange(bins, dtype=torch.float64)[:, None] + 0.5
    basis = (turns * torch.arange(count, dtype=torch.float64) * math.pi / bins).cos() * math.sqrt(2 / bins)
    basis[:, 0] /= math.sqrt(2)
    return spectra @ basis.to(spectra)


@cache
def _filters(bins: int, size: int, rate: int) -> np.ndarray:
    """As `mel_filters`; kept as no tensor, which would be of the mode and the device of its first use."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, bins + 2) / 2595) - 1)
    frequencies = np.linspace(0, rate / 2, size // 2 + 1)[:, None]
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    return np.minimum(rising, falling).clip(min=0).astype(np.float32)
