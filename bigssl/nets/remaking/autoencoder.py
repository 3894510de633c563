"""Autoencoders (Rumelhart et al. 1986; denoising: Vincent et al. 2008, https://doi.org/10.1145/1390156.1390294): a
picture from the last feature map of a convolutional network, which is the bottleneck."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.nets.chance import noise
from bigssl.nets.norm import has_batch_norm
from bigssl.nets.pool import normalise
from bigssl.nets.remaking.base import Remade, Remaker, picture_bytes
from bigssl.nets.remaking.upsampling import Upsampling

BLOCKS = 4  # a side of what "colours of 16 blocks" tells of a picture


class AutoencoderRemaker(Remaker):
    """The light decoder of `Upsampling`; what it makes is −1..1 where it is right."""

    def __init__(self, *, dim: int, side: int, size: int, width: int, channels: int = 3, noise: float = 0.0) -> None:
        """
        Args:
            dim: channels of the feature map. side: of it. size: of the pictures.
            width: channels of the first stage. channels: of the pictures.
            noise: standard deviation of the Gaussian noise on what the network sees, where pixels are -1..1.
        """
        super().__init__(dim=dim, side=side, size=size, width=width, channels=channels, noise=noise)
        self.side = side
        self.decoder = Upsampling(dim=dim, side=side, size=size, width=width, channels=channels)

    @property
    def noise(self) -> float:
        """Of what is asked, not of the network."""
        return float(self.settings["noise"])

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, D, side, side] -> pixels float32 [B, C, size, size], -1..1 where they are right."""
        pixels: Tensor = self.decoder(hidden)
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
        of = self.settings["channels"] * self.settings["size"] ** 2
        given = f"the picture with noise ({self.noise:g} of −1..1)" if self.noise else "the picture"
        return f"Given: {given}; made: from the {numbers:,} numbers of the last feature map (of {of:,} in the picture)."


def feature_map(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """float [B, C, H, W] -> the last hidden states of a convolutional network, [B, D, h, w]."""
    if has_batch_norm(model):
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    hidden: Tensor = model(pixel_values=pixels).last_hidden_state
    return hidden
