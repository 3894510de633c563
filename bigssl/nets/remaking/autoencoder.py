"""Autoencoders (Rumelhart et al. 1986; denoising: Vincent et al. 2008, https://doi.org/10.1145/1390156.1390294): a
picture from the last feature map of a convolutional network, which is the bottleneck."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.nets import noise
from bigssl.nets.norm import has_batch_norm
from bigssl.nets.pool import normalise
from bigssl.nets.remaking.base import Remade, Remaker, picture_bytes

NARROWEST = 16  # channels of the finest stage at least
BLOCKS = 4  # a side of what "colours of 16 blocks" tells of a picture


class AutoencoderRemaker(Remaker):
    """Stages of doubling the side (nearest neighbour, then a 3 × 3 convolution, which leaves no checkerboard: Odena et
    al. 2016, https://doi.org/10.23915/distill.00003), GroupNorm and ReLU; each has half the channels of the one before.
    """

    def __init__(self, *, dim: int, side: int, size: int, width: int, channels: int = 3, noise: float = 0.0) -> None:
        """
        Args:
            dim: channels of the feature map. side: of it. size: of the pictures.
            width: channels of the first stage. channels: of the pictures.
            noise: standard deviation of the Gaussian noise on what the network sees, where pixels are -1..1.
        """
        super().__init__(dim=dim, side=side, size=size, width=width, channels=channels, noise=noise)
        self.size, self.side = size, side
        doublings = max(1, math.ceil(math.log2(size / side)))
        widths = [max(NARROWEST, width >> stage) for stage in range(doublings)]
        self.entry = nn.Conv2d(dim, widths[0], 1)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(_groups(after), after), nn.ReLU())
            for before, after in zip([widths[0], *widths], widths, strict=False)
        )
        self.exit = nn.Conv2d(widths[-1], channels, 3, padding=1)

    @property
    def noise(self) -> float:
        """Of what is asked, not of the network."""
        return float(self.settings["noise"])

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D, side, side] -> pixels float32 [B, C, size, size], -1..1 where they are right."""
        states = self.entry(hidden)
        for number, stage in enumerate(self.stages, 1):
            states = stage(F.interpolate(states, size=min(self.size, self.side << number), mode="nearest"))
        pixels: Tensor = self.exit(states).float()
        return pixels

    def shown(self, pictures: Tensor, seeds: Tensor) -> Tensor:
        """What the network sees, float32 [B, C, H, W]: the pictures, with noise that follows from the seeds."""
        pixels = normalise(pictures)
        if not self.noise:
            return pixels
        return pixels + self.noise * noise.gaussian(seeds, "noise", pixels[0].numel()).view_as(pixels)

    def remake(self, model: PreTrainedModel, pictures: Tensor, seeds: Tensor) -> Remade:
        shown = self.shown(pictures, seeds)
        made = picture_bytes(self(feature_map(model, shown)))
        return Remade(picture_bytes(shown) if self.noise else pictures, made, torch.ones_like(pictures[:, :1]).bool())

    def simple(self, pictures: Tensor, given: Tensor, judged: Tensor) -> dict[str, Tensor]:
        """The mean colour of each picture, and the means of 4 × 4 blocks; of noisy ones what was shown, too."""
        pixels, size = normalise(given), pictures.shape[-2:]
        blocks = F.interpolate(F.adaptive_avg_pool2d(pixels, BLOCKS), size=size, mode="bilinear", align_corners=False)
        means = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
        found = {"mean colour of the picture": picture_bytes(means),
                 f"colours of {BLOCKS} × {BLOCKS} blocks": picture_bytes(blocks)}  # fmt: skip
        return found | ({"the noisy picture": given} if self.noise else {})

    def caption(self) -> str:
        numbers = self.settings["dim"] * self.side**2
        of = self.settings["channels"] * self.size**2
        given = f"the picture with noise ({self.noise:g} of −1..1)" if self.noise else "the picture"
        return f"Given: {given}; made: from the {numbers:,} numbers of the last feature map (of {of:,} in the picture)."


def feature_map(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """float [B, C, H, W] -> the last hidden states of a convolutional network, [B, D, h, w]."""
    if has_batch_norm(model):
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    hidden: Tensor = model(pixel_values=pixels).last_hidden_state
    return hidden


def _groups(channels: int) -> int:
    """As many groups as divide the channels, 8 at most."""
    return math.gcd(channels, 8)
