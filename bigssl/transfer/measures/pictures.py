"""How near are pictures to the truth, where they are judged? PSNR, and SSIM (Wang et al. 2004,
https://doi.org/10.1109/TIP.2003.819861)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11  # pixels a side
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2  # of pixels 0..1
_ROUNDED = 1 / 12 / 255**2  # squared error of rounding to one of 256 greys: nothing is told below it


def psnr(made: Tensor, truth: Tensor, judged: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, −10 log10 of the mean squared error of judged pixels of 0..1;
    an error below that of rounding counts as that, so that 58.9 is the most.

    Args:
        made, truth: uint8 [B, C, H, W]. judged: bool [B, 1, H, W], some of each.

    Returns:
        float64 [B].
    """
    squares = _unit(made).sub_(_unit(truth)).square_().mul_(judged)
    errors = squares.sum((1, 2, 3)) / (judged.double().sum((1, 2, 3)) * made.shape[1])
    return -10 * errors.clamp(min=_ROUNDED).log10()


def ssim(made: Tensor, truth: Tensor, judged: Tensor) -> Tensor:
    """Structural similarity of each picture, 1 where it is the truth: the mean over windows of 11 × 11 (a Gaussian of
    1.5 pixels) that lie within the picture, and over channels. Each window counts as much as it sees of what is judged;
    where all is judged, all count alike.

    Args:
        made, truth: uint8 [B, C, H, W] of 11 pixels a side at least. judged: bool [B, 1, H, W], some of each.

    Returns:
        float64 [B].
    """
    one, other = _unit(made), _unit(truth)
    mean, known = _seen(one), _seen(other)
    variance, spread = _seen(one * one) - mean**2, _seen(other * other) - known**2
    shared = _seen(one * other) - mean * known
    alike = (2 * mean * known + _C1) * (2 * shared + _C2)
    alike /= (mean**2 + known**2 + _C1) * (variance + spread + _C2)
    share = _seen(judged.double())
    return (alike.mean(1, keepdim=True) * share).sum((1, 2, 3)) / share.sum((1, 2, 3))


def _unit(pictures: Tensor) -> Tensor:
    """uint8 -> float64, 0..1."""
    return pictures.double() / 255


def _seen(values: Tensor) -> Tensor:
    """float64 [B, C, H, W] -> [B, C, H − 10, W − 10]: the weighted mean of each window."""
    places = torch.arange(WINDOW, dtype=torch.float64, device=values.device) - WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).expand(values.shape[1], 1, 1, -1)
    across = F.conv2d(values, weights, groups=values.shape[1])
    return F.conv2d(across, weights.transpose(2, 3), groups=values.shape[1])
