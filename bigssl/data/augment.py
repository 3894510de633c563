"""SimCLR's random views (Chen et al. 2020, appendix A) and the fixed view of evaluation, on PIL pictures.

Everything is integer arithmetic inside Pillow, one C call per step. Results are uint8 [3, H, W]; they are normalised on
the device, so that a batch travels as a quarter of the bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter, ImageOps


@dataclass(frozen=True)
class SimClrAugment:
    """One random view of a picture: (RGB picture, generator) -> uint8 [3, size, size].

    size: side of the view in pixels. min_scale: smallest share of the area that a crop keeps (aspect 3/4 to 4/3).
    flip: mirror half of them. jitter: strength s of the paper, applied to 80 %: brightness, contrast and saturation
    by a factor from [1 - .8 s, 1 + .8 s], hue by up to ±.2 s turns, in random order. grey, blur, solarise:
    probabilities; blur has a sigma from [.1, 2] at 224 pixels, in proportion to `size`.
    """

    size: int
    min_scale: float = 0.2
    flip: bool = True
    jitter: float = 1.0
    grey: float = 0.2
    blur: float = 0.5
    solarise: float = 0.0

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        view = _random_crop(image, self.size, self.min_scale, rng)
        chances = rng.random(5)
        if self.flip and chances[0] < 0.5:
            view = ImageOps.mirror(view)
        if chances[1] < 0.8 and self.jitter > 0:
            view = jitter(view, self.jitter, rng)
        if chances[2] < self.grey:
            view = view.convert("L").convert("RGB")
        if chances[3] < self.blur:
            view = blur(view, rng.uniform(0.1, 2.0) * self.size / 224)
        if chances[4] < self.solarise:
            view = ImageOps.solarize(view, 128)
        return to_array(view)


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """Gaussian blur; below .25 pixels the neighbours weigh e^-8 and no byte would change."""
    return image.filter(ImageFilter.GaussianBlur(sigma)) if sigma >= 0.25 else image


def to_array(image: Image.Image) -> np.ndarray:
    """RGB picture -> uint8 [3, H, W], contiguous."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def center(image: Image.Image, size: int) -> np.ndarray:
    """The fixed view: shorter side to `size`, middle square. RGB picture -> uint8 [3, size, size]."""
    if image.size == (size, size):
        return to_array(image)
    return to_array(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def crop_box(width: int, height: int, min_scale: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a crop with area in [min_scale, 1] of the whole and log-uniform aspect 3/4 to 4/3.

    Ten attempts, then the largest middle square of the picture: Inception's rule, which the paper uses.
    """
    for area, aspect, x, y in rng.random((10, 4)).tolist():
        target = width * height * (min_scale + (1 - min_scale) * area)
        ratio = math.exp(math.log(3 / 4) + aspect * math.log(16 / 9))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _random_crop(image: Image.Image, size: int, min_scale: float, rng: np.random.Generator) -> Image.Image:
    box = crop_box(*image.size, min_scale, rng)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Colour jitter of `strength` s: four changes in random order, as the paper's released code does it."""
    spread = 0.8 * strength
    low, high = max(0.0, 1 - spread), 1 + spread
    draws = rng.random(5).tolist()
    factors = [low + draw * (high - low) for draw in draws[:3]]
    turn = (2 * draws[3] - 1) * min(0.2 * strength, 0.5)
    for change in _ORDERS[int(draws[4] * len(_ORDERS))]:
        image = hue(image, turn) if change == 3 else _BLENDS[change](image, factors[change])
    return image


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Every channel times `factor`, clipped."""
    return Image.blend(Image.new("RGB", image.size), image, factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Moved away from (factor > 1) or towards the picture's mean luminance."""
    mean = image.convert("L").reduce(image.size).convert("RGB").getpixel((0, 0))
    return Image.blend(Image.new("RGB", image.size, mean), image, factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """Moved away from (factor > 1) or towards its own grey version."""
    return Image.blend(image.convert("L").convert("RGB"), image, factor)


def hue(image: Image.Image, turn: float) -> Image.Image:
    """Hue moved by `turn` (in turns, -.5 to .5), in HSV."""
    shift = round(turn * 255) % 256
    if shift == 0:
        return image
    pixels = np.array(image.convert("HSV"))
    pixels[..., 0] += np.uint8(shift)  # wraps, as the wheel does
    return Image.frombytes("HSV", image.size, pixels.tobytes()).convert("RGB")


_BLENDS = (brightness, contrast, saturation)
_ORDERS = tuple((a, b, c, 6 - a - b - c) for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3)
