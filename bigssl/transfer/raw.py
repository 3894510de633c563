"""Raw samples as vectors, baselines that have learnt nothing: by what they are in words, of collated views [B, ...].

Where two are sensible there are both, and the better one counts: with values as they are, a channel of large scale or
the loudness of a sound may be all that a cosine sees; at equal scale, what level and loudness tell is lost.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl.nets.pool import means_of_parts, normalise_sound
from bigssl.nets.sound import mel

SIDE = 64  # pixels a side at most of pictures
WIDTH = 4096  # values at most of a series
WINDOW = 512  # samples of sound whose spectrum is taken at once
BANDS, CEPSTRA, PARTS = 40, 13, 10  # of sound: mel bands, coefficients of each window, parts of which means are taken
PIXELS = "raw pixels"


def pixels(pictures: Tensor) -> dict[str, Tensor]:
    """Of uint8 [B, C, H, W]: uint8 [B, C·H·W], at most SIDE pixels a side (means of areas)."""
    if max(pictures.shape[-2:]) > SIDE:
        pictures = F.adaptive_avg_pool2d(pictures.float(), SIDE).round_().to(torch.uint8)
    return {PIXELS: pictures.flatten(1)}


def values(series: Tensor, observed: Tensor, parts: int) -> dict[str, Tensor]:
    """Of float32 [B, T, C] and bool [B, T, C], false where nothing was observed: float32 [B, C · parts], channel by
    channel, a long series as means of its parts; as they are, and with each channel of each series at mean 0 and
    variance 1 (0 where nothing was observed)."""
    seen = observed.float()
    count = seen.sum(1, keepdim=True).clamp(min=1)
    off = (series - (series * seen).sum(1, keepdim=True) / count) * seen
    scale = (off.square().sum(1, keepdim=True) / count).sqrt()
    varies = scale > 1e-6 * series.abs().amax(1, keepdim=True)  # more than rounding makes of a constant
    equal = torch.where(varies, off / scale.clamp(min=1e-30), 0.0)
    return {name: F.adaptive_avg_pool1d(each.transpose(1, 2), parts).flatten(1)
            for name, each in (("raw values", series), ("raw values at equal scale", equal))}  # fmt: skip


def spectra(sounds: Tensor, heard: Tensor) -> dict[str, Tensor]:
    """Of float32 [B, T] and int64 [B, T], 0 in the silence that fills a sound up: float32 [B, N], the log of the mean
    power at each frequency; as loud as they are, and equally loud."""
    found = {"log power spectrum": sounds, "log power spectrum at equal loudness": normalise_sound(sounds, heard)}
    return {name: _log_power(each) for name, each in found.items()}


def cepstra_in_parts(sounds: Tensor, heard: Tensor, rate: int) -> dict[str, Tensor]:
    """Of float32 [B, T] at `rate` and int64 [B, T]: float32 [B, PARTS · CEPSTRA], cepstra of windows of 25 ms every 10
    ms, less their mean over the sound, as means of PARTS equal parts of it: words said at another speed, or through
    another microphone, are alike."""
    seen, stride = max(2, round(0.025 * rate)), max(1, round(0.01 * rate))
    if sounds.shape[1] < seen:
        sounds = F.pad(sounds, (0, seen - sounds.shape[1]))
    frames = mel.cepstra(mel.log_mel(sounds, BANDS, rate, seen, stride), CEPSTRA)
    counts = ((heard.sum(1) - seen) // stride + 1).clamp(min=1)
    mean = means_of_parts(frames, counts, 1)
    return {f"MFCC of {PARTS} parts": means_of_parts(frames - mean, counts, PARTS).flatten(1)}


def _log_power(sounds: Tensor) -> Tensor:
    window = torch.hann_window(WINDOW, device=sounds.device)
    spectrum = torch.stft(sounds, WINDOW, window=window, pad_mode="constant", return_complex=True)
    return (spectrum.abs().square().mean(-1) + torch.finfo(torch.float32).eps).log()
