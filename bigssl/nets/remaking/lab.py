"""Lightness and colour: sRGB (IEC 61966-2-1) <-> CIE L*a*b* under D65, in torch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_BEND = 6 / 29  # of the cube root, below which it is a line


def lab_of(pictures: Tensor) -> Tensor:
    """uint8 [..., 3, H, W] RGB -> float32 [..., 3, H, W]: L in 0..100, a in -86.2..98.2, b in -107.9..94.5."""
    coded = torch.arange(256, device=pictures.device, dtype=torch.float64) / 255
    linear = torch.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4).float()[pictures.long()]
    xyz = torch.einsum("ij,...jhw->...ihw", _to_xyz(pictures.device), linear)  # in parts of white's
    root = torch.where(xyz > _BEND**3, xyz.clamp(min=_BEND**3) ** (1 / 3), xyz / (3 * _BEND**2) + 4 / 29)
    x, y, z = root.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def rgb_of(lab: Tensor) -> Tensor:
    """float [..., 3, H, W] -> uint8 [..., 3, H, W] RGB, rounded; what sRGB does not have is cut off at its borders."""
    light, a, b = lab.float().unbind(-3)
    y = (light + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], -3)
    xyz = torch.where(root > _BEND, root**3, 3 * _BEND**2 * (root - 4 / 29))
    linear = torch.einsum("ij,...jhw->...ihw", _to_xyz(lab.device).inverse(), xyz).clamp(0, 1)
    coded = torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-3) ** (1 / 2.4) - 0.055)
    return (coded * 255).round().to(torch.uint8)


def _to_xyz(device: torch.device) -> Tensor:
    """float32 [3, 3]: linear RGB -> X, Y, Z in parts of those of white, so that greys have a = b = 0."""
    matrix = torch.tensor(_XYZ, device=device)
    return matrix / matrix.sum(1, keepdim=True)
