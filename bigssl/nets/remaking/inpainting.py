"""Context encoders (Pathak et al. 2016, arXiv 1604.07379): what is hidden of a picture, from what is seen of it."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.nets.modality import MODALITIES
from bigssl.nets.pool import normalise
from bigssl.nets.remaking.base import GREY, Remade, Remaker, picture_bytes
from bigssl.nets.remaking.holes import Holes, Shape, border_mean
from bigssl.nets.remaking.upsampling import Upsampling

_CLASSIC = {"Telea's": cv2.INPAINT_TELEA, "Navier-Stokes": cv2.INPAINT_NS}
_RADIUS = 3  # pixels around a hidden one that OpenCV looks at


class InpaintingRemaker(Remaker):
    """The light decoder of a context encoder: the last feature map, or the patches, become a picture. Its last
    layer is a tanh, as in the paper's code."""

    def __init__(
        self, *, dim: int, side: int, size: int, width: int, hole: Shape, share: float, channels: int = 3
    ) -> None:
        """
        Args:
            dim: of the hidden states. side: of their map. size: of the pictures. width: of the decoder's first stage.
            hole, share: what is hidden, see `Holes`.
        """
        super().__init__(dim=dim, side=side, size=size, width=width, hole=hole, share=share, channels=channels)
        self.holes = Holes(hole, share, size)
        self.decoder = Upsampling(dim=dim, side=side, size=size, width=width, channels=channels)
        self.side = side

    def forward(self, states: Tensor) -> Tensor:
        """[B, side · side, dim], row by row -> float32 [B, C, size, size] in -1..1, everywhere."""
        pictures: Tensor = self.decoder(states.transpose(1, 2).unflatten(2, (self.side, self.side))).tanh()
        return pictures

    def remake(self, model: PreTrainedModel, pictures: Tensor, seeds: Tensor) -> Remade:
        hidden = self.holes.of_seeds(seeds)
        given = pictures.masked_fill(hidden, GREY)
        made = picture_bytes(self(MODALITIES["image"].hidden(model, {"image": given})))
        return Remade(given, torch.where(hidden, made, pictures), hidden)

    def simple(self, pictures: Tensor, given: Tensor, judged: Tensor) -> dict[str, Tensor]:
        """The mean of the visible border, and OpenCV's classic fills, none of which has seen another picture."""
        mean = picture_bytes(border_mean(normalise(given), judged).expand(pictures.shape))
        found = {"mean of the visible border": torch.where(judged, mean, pictures)}
        return found | {f"OpenCV's fill ({name})": _filled(given, judged, way) for name, way in _CLASSIC.items()}

    def caption(self) -> str:
        shape = {"block": "a block", "center": "the middle", "irregular": "free-form strokes"}[self.holes.shape]
        return f"Given: all but {shape}, {self.holes.share:.0%} of the pixels; made: what is hidden, the rest put back."


def _filled(given: Tensor, hidden: Tensor, way: int) -> Tensor:
    """uint8 [B, 1 or 3, H, W], each picture filled in by OpenCV."""
    pictures, holes = given.permute(0, 2, 3, 1).cpu().numpy(), hidden[:, 0].to(torch.uint8).cpu().numpy()
    filled = [cv2.inpaint(np.ascontiguousarray(each), hole, _RADIUS, way) for each, hole in
              zip(pictures, holes, strict=True)]  # fmt: skip
    return torch.from_numpy(np.stack(filled).reshape(pictures.shape)).permute(0, 3, 1, 2).to(given.device)
