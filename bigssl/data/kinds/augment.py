"""SimCLR's random views (Chen et al. 2020, appendix A) and the fixed view of evaluation, on PIL pictures.

A view is drawn before it is made: `SimClrAugment.draw` gives the numbers of a `View`, which `render` here and
augment_device.py on batches of tensors turn into the same pixels. views.py holds the distributions of other papers.

Everything here is integer arithmetic inside Pillow, one C call per step. Results are uint8 [3, H, W]; they are
normalised on the device, so that a batch travels as a quarter of the bytes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from bigssl.config import limits
from bigssl.data.errors import DataError

Box = tuple[int, int, int, int]
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
SOLARISE_FROM = 128


@dataclass(frozen=True)
class View:
    """What happens to a picture, in this order.

    box: left, top, right, bottom of the crop, in pixels. flip: mirror it. factors: of brightness, contrast and
    saturation (1 keeps). turn: of the hue, in turns. order: of BRIGHTNESS, CONTRAST, SATURATION and HUE. grey. sigma:
    of the Gaussian blur in pixels of the view (0: none). solarise: invert what is at least SOLARISE_FROM.
    """

    box: Box
    flip: bool = False
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    turn: float = 0.0
    order: tuple[int, ...] = (BRIGHTNESS, CONTRAST, SATURATION, HUE)
    grey: bool = False
    sigma: float = 0.0
    solarise: bool = False

    def arrays(self) -> dict[str, Any]:
        """The same as numbers and arrays, for `collate`: box and factors float32, order int64."""
        exact = {
            "box": np.array(self.box, np.float32),
            "factors": np.array(self.factors, np.float32),
            "order": np.array(self.order, np.int64),
        }
        return asdict(self) | exact


@dataclass(frozen=True)
class SimClrAugment:
    """Random views of a picture: (uint8 [H, W, 3], generator) -> uint8 [3, size, size].

    size: side of the view in pixels. min_scale, max_scale: smallest and largest share of the area that a crop keeps
    (aspect 3/4 to 4/3). flip: mirror half of them. jitter: strength s of the paper, applied to 80 %: brightness and
    contrast by a factor from [1 - .8 s, 1 + .8 s], saturation from [1 - `saturation` s, 1 + `saturation` s], hue by up
    to ±.2 s turns, in random order. grey, blur, solarise: probabilities; blur has a sigma from [.1, 2] at 224 pixels,
    in proportion to `size`.
    """

    size: int
    min_scale: float = 0.2
    flip: bool = True
    jitter: float = 1.0
    saturation: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
    solarise: float = 0.0
    max_scale: float = 1.0

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = pixels.shape[:2]
        return render(Image.fromarray(pixels), self.draw(width, height, rng), self.size)

    @property
    def largest_sigma(self) -> float:
        """Of the blur, in pixels of the view; 0 where there is none."""
        return 2.0 * self.size / 224 if self.blur > 0 else 0.0

    def draw(self, width: int, height: int, rng: np.random.Generator) -> View:
        """A view of a picture of `width` × `height`."""
        box = crop_box(width, height, self.min_scale, rng, self.max_scale)
        flip, jitter, grey, blur, solarise = rng.random(5).tolist()
        colours = self._colours(rng) if jitter < 0.8 and self.jitter > 0 else {}
        return View(
            box,
            flip=self.flip and flip < 0.5,
            **colours,
            grey=grey < self.grey,
            sigma=rng.uniform(0.05, 1.0) * self.largest_sigma if blur < self.blur else 0.0,
            solarise=solarise < self.solarise,
        )

    def _colours(self, rng: np.random.Generator) -> dict[str, Any]:
        """Four changes in random order, as the paper's released code does it."""
        draws = rng.random(5).tolist()
        spreads = [0.8 * self.jitter, 0.8 * self.jitter, self.saturation * self.jitter]
        lows = [max(0.0, 1 - spread) for spread in spreads]
        factors = [low + draw * (1 + spread - low) for low, draw, spread in zip(lows, draws, spreads, strict=False)]
        turn = (2 * draws[3] - 1) * min(0.2 * self.jitter, 0.5)
        return {"factors": tuple(factors), "turn": turn, "order": _ORDERS[int(draws[4] * len(_ORDERS))]}


def render(image: Image.Image, view: View, size: int) -> np.ndarray:
    """`view` of an RGB picture: uint8 [3, size, size]."""
    changed = image.resize((size, size), Image.Resampling.BICUBIC, box=view.box)
    if view.flip:
        changed = ImageOps.mirror(changed)
    changed = jitter(changed, view)
    if view.grey:
        changed = changed.convert("L").convert("RGB")
    changed = blur(changed, view.sigma)
    if view.solarise:
        changed = ImageOps.solarize(changed, SOLARISE_FROM)
    return to_array(changed)


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """Gaussian blur; below .25 pixels the neighbours weigh e^-8 and no byte would change."""
    return image.filter(ImageFilter.GaussianBlur(sigma)) if sigma >= 0.25 else image


def to_array(image: Image.Image) -> np.ndarray:
    """RGB picture -> uint8 [3, H, W], contiguous."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def center(image: Image.Image, size: int) -> np.ndarray:
    """The fixed view of evaluation: shorter side to `size`, middle square. RGB picture -> uint8 [3, size, size].

    Pixel for pixel what the exported preprocessor does (`bigssl.transfer.inputs`): bicubic with antialiasing, the
    longer side cut to whole pixels, and the whole picture resized before the square is cut out: Pillow chooses the
    order of its two passes by the shape, and it shows. Raises DataError for a strip that would become too large.
    """
    square = middle(*image.size, size)
    resized = image.resize((square.width, square.height), Image.Resampling.BICUBIC)
    return to_array(resized.crop(square.box))


def center_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """The same view of the classes of its pixels: uint8 [H, W] -> uint8 [size, size], each the nearest one."""
    square = middle(mask.shape[1], mask.shape[0], size)
    resized = Image.fromarray(mask).resize((square.width, square.height), Image.Resampling.NEAREST)
    return np.asarray(resized.crop(square.box))


class Middle(NamedTuple):
    """A picture that is resized to width × height pixels, of which `box` is then cut out."""

    width: int
    height: int
    box: Box


def middle(width: int, height: int, size: int) -> Middle:
    """What `center` does with a picture of `width` × `height`. Raises DataError."""
    shorter = min(width, height)
    wide, high = int(size * width / shorter), int(size * height / shorter)
    if refused := limits.over("image_pixels", wide * high):
        raise DataError(f"picture of {width}×{height} pixels becomes {wide}×{high}: {refused}")
    left, top = (wide - size) // 2, (high - size) // 2
    return Middle(wide, high, (left, top, left + size, top + size))


def crop_box(width: int, height: int, min_scale: float, rng: np.random.Generator, max_scale: float = 1.0) -> Box:
    """(left, top, right, bottom) of a crop with a share of the whole in [min_scale, max_scale] and log-uniform aspect
    3/4 to 4/3.

    Ten attempts, then the largest middle square that is no more: Inception's rule, which the paper uses.
    """
    for area, aspect, x, y in rng.random((10, 4)).tolist():
        target = width * height * (min_scale + (max_scale - min_scale) * area)
        ratio = math.exp(math.log(3 / 4) + aspect * math.log(16 / 9))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    side = max(1, min(width, height, int(math.sqrt(max_scale * width * height))))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def jitter(image: Image.Image, view: View) -> Image.Image:
    """The changes of colour of `view`, in its order."""
    for change in view.order:
        if change == HUE:
            image = hue(image, view.turn)
        elif view.factors[change] != 1:
            image = _BLENDS[change](image, view.factors[change])
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
