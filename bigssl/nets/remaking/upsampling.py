"""A light decoder: from a small map of many channels to a picture, twice the side at a time."""

from __future__ import annotations

from torch import Tensor, nn

from bigssl.nets.gan import group_norm

_THIN = 16  # channels at least


class Upsampling(nn.Module):
    """Nearest neighbours, a convolution, GroupNorm, ReLU: sides are doubled and channels halved until the picture's
    side is reached (no transposed convolutions: their overlaps show as a chequered pattern, Odena et al. 2016)."""

    def __init__(self, dim: int, grid: int, size: int, width: int, channels: int) -> None:
        """dim: of the states. grid: side of their map. size: of the picture. width: channels of the first map."""
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 1, bias=False), group_norm(width), nn.ReLU(inplace=True)]
        side = grid
        while side < size:
            side, thinner = min(2 * side, size), max(width // 2, min(width, _THIN))
            layers += [nn.Upsample(size=(side, side)), nn.Conv2d(width, thinner, 3, padding=1, bias=False)]
            layers += [group_norm(thinner), nn.ReLU(inplace=True)]
            width = thinner
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))
        self.grid = grid

    def forward(self, states: Tensor) -> Tensor:
        """[B, grid · grid, dim], row by row -> [B, channels, size, size]."""
        pictures: Tensor = self.layers(states.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        return pictures
