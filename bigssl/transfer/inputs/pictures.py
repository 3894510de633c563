"""Pictures, as a backbone takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from bigssl.data.kinds import augment, decode
from bigssl.nets.modality.pixels import COLOURS
from bigssl.nets.pool import IMAGE_MEAN, IMAGE_STD
from bigssl.transfer import raw
from bigssl.transfer.arriving.sizes import PREPROCESSOR, image_channels, image_side, image_window
from bigssl.transfer.inputs.base import Input, preprocessor_settings, write_settings

BICUBIC = 3  # Pillow's number


@dataclass(frozen=True)
class ImageInput(Input):
    """size: image side in pixels. channels: 3, or 1. window: the stored values that become 0 and 255 of grey pictures
    of more than 8 bits; None: as `pictures.image` says. The view is image uint8 [channels, size, size]: the middle
    square, shorter side resized.

    A JPEG is decoded whole: what a decoder makes of it at a half or a quarter is not what the exported preprocessor
    makes of it.
    """

    size: int
    channels: int = COLOURS
    window: tuple[float, float] | None = None
    modality, plural, loader = "image", "images", "AutoImageProcessor"

    @property
    def described(self) -> str:
        return f"Pictures: {self.before} Then through the `AutoImageProcessor` beside the weights, which prepares " \
               "them as they were when the scorecard was made."  # fmt: skip

    @property
    def before(self) -> str:
        low, high = self.window or (0, 65535)
        deep = f"(value - {low:g}) · 255 / ({high:g} - {low:g}), cut to 0..255 and rounded" if self.window else (
            "the upper 8 bits of unsigned 16")  # fmt: skip
        last = "made grey (`convert(\"L\")`)" if self.channels == 1 else "made RGB"
        return ("Pictures are first turned upright as their EXIF says (`PIL.ImageOps.exif_transpose`), transparent "
                f"ones laid on white, grey ones of more than 8 bits made bytes ({deep}), then {last}, which no library "
                "does by itself: of others the features are others.")  # fmt: skip

    @property
    def mode(self) -> str:
        """Pillow's name of what the network sees."""
        return "L" if self.channels == 1 else "RGB"

    @classmethod
    def read(cls, folder: Path) -> ImageInput:
        settings = preprocessor_settings(folder, "images")
        return cls(image_side(folder, settings), image_channels(folder), image_window(folder, settings))

    def write(self, folder: Path) -> None:
        """Settings with which `AutoImageProcessor` makes of an RGB picture, or a grey one of a network of one channel,
        exactly the view. To the byte with Pillow; where torchvision resizes in its place, it rounds differently.

        The CLIP processor is the one of transformers that does just this; the networks need not be CLIP's. `window` is
        for us and for readers: no processor has such a step.
        """
        write_settings(folder / PREPROCESSOR, ({} if self.window is None else {"window": list(self.window)}) | {
            "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": self.channels == COLOURS,
            "do_resize": True, "size": {"shortest_edge": self.size}, "resample": BICUBIC,
            "do_center_crop": True, "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": [IMAGE_MEAN] * self.channels,
            "image_std": [IMAGE_STD] * self.channels,
        })  # fmt: skip

    def _view(self, data: bytes) -> dict[str, np.ndarray]:
        return {"image": augment.center(decode.image(data, mode=self.mode, window=self.window), self.size)}

    @property
    def reduced(self) -> str:
        return f"Raw pixels are those of pictures at most {raw.SIDE} pixels a side." if self.size > raw.SIDE else ""

    def raws(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return raw.pixels(batch["image"])
