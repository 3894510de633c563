"""Lightness and colour: sRGB (IEC 61966-2-1) <-> CIE L*a*b* under D65, in torch, on any device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BEND = 6 / 29  # of the cube root, below which it is a line
_CODED = np.arange(256) / 255
_LINEAR = np.where(_CODED <= 0.04045, _CODED / 12.92, ((_CODED + 0.055) / 1.055) ** 2.4).astype(np.float32)
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_XYZ /= _XYZ.sum(1, keepdims=True)  # in parts of white's, so that greys have a = b = 0


def lab_of(pictures: Tensor) -> Tensor:
    """uint8 [..., 3, H, W] RGB -> float32 [..., 3, H, W]: L in 0..100, a in -86.2..98.2, b in -107.9..94.5."""
    linear = torch.from_numpy(_LINEAR).to(pictures.device)[pictures.long()]
    xyz = torch.einsum("ij,...jhw->...ihw", _matrix(_XYZ, pictures.device), linear)
    root = torch.where(xyz > _BEND**3, xyz.clamp(min=_BEND**3) ** (1 / 3), xyz / (3 * _BEND**2) + 4 / 29)
    x, y, z = root.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def rgb_of(lab: Tensor) -> Tensor:
    """float [..., 3, H, W] -> uint8 [..., 3, H, W] RGB, rounded; what sRGB does not have is cut off at its borders."""
    light, a, b = lab.float().unbind(-3)
    y = (light + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], -3)
    xyz = torch.where(root > _BEND, root**3, 3 * _BEND**2 * (root - 4 / 29))
    linear = torch.einsum("ij,...jhw->...ihw", _matrix(np.linalg.inv(_XYZ), lab.device), xyz).clamp(0, 1)
    coded = torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-3) ** (1 / 2.4) - 0.055)
    return (coded * 255).round().to(torch.uint8)


def _matrix(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device)
