"""SimCLR's random views (Chen et al. 2020, appendix A), and the fixed view of evaluation.

A view is drawn before it is made: `SimClrAugment.draw` gives the numbers of a `View`, which `render` here (in a worker)
and augment_device.py (batches, on the device that trains) make by the same definition:

    crop        whole pixels; nothing outside the box is seen
    resize      bicubic (Keys 1981). Where the box is no larger than the view, a = -3/4, edges repeated (OpenCV); where
                a side is reduced, a = -1/2 and the kernel is as much wider (antialiased: Pillow's, by torch's kernel)
    flip        left and right
    colours     brightness, contrast, saturation, hue in the order of the view: colours.py
    grey, blur  ITU-R 601; a Gaussian cut off at three sigma
    solarise    invert the brighter half

Values are cut to bytes after each step here and at the end there. Results are uint8 [C, H, W]; they are normalised on
the device, so that a batch travels as a quarter of the bytes. views.py holds the distributions of other papers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from bigssl.config import limits
from bigssl.data.errors import DataError
from bigssl.data.kinds import colours

Box = tuple[int, int, int, int]
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class View:
    """What happens to a picture, in this order.

    box: left, top, right, bottom of the crop, in pixels. flip: mirror it. factors: of brightness, contrast and
    saturation (1 keeps). turn: of the hue, in turns. order: of BRIGHTNESS, CONTRAST, SATURATION and HUE. grey. sigma:
    of the Gaussian blur in pixels of the view (0: none). solarise: invert the brighter half.
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
    """Random views of a picture: (uint8 [H, W, C], generator) -> uint8 [C, size, size], C = 3 or 1.

    size: side of the view in pixels. min_scale, max_scale: smallest and largest share of the area that a crop keeps
    (aspect 3/4 to 4/3). flip: mirror half of them. jitter: strength s of the paper, applied to 80 %: brightness and
    contrast by a factor from [1 - .8 s, 1 + .8 s], saturation from [1 - `saturation` s, 1 + `saturation` s], hue by up
    to ±.2 s turns, in random order. grey, blur, solarise: probabilities; blur has a sigma from [.1, 2] at 224 pixels,
    in proportion to `blur_side`, by default `size` (at 32 pixels .29 at most, which changes next to nothing). The same
    numbers are drawn for a picture of one channel, which has no saturation, hue or grey to change.
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
    blur_side: int | None = None

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = pixels.shape[:2]
        return render(pixels, self.draw(width, height, rng), self.size)

    @property
    def largest_sigma(self) -> float:
        """Of the blur, in pixels of the view; 0 where there is none."""
        return 2.0 * (self.blur_side or self.size) / 224 if self.blur > 0 else 0.0

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


def render(pixels: np.ndarray, view: View, size: int) -> np.ndarray:
    """`view` of a picture: uint8 [H, W, C] -> uint8 [C, size, size], C = 3 or 1."""
    left, top, right, bottom = view.box
    image = resize(pixels[top:bottom, left:right], size, size)
    if view.flip:
        image = cv2.flip(image, 1)
    image = jitter(image, view)
    if view.grey and image.ndim == 3:
        image = colours.to_grey(image)
    image = colours.blur(image, view.sigma)
    if view.solarise:
        image = colours.solarise(image)
    return to_planes(image, pixels.shape[2])


def jitter(image: np.ndarray, view: View) -> np.ndarray:
    """The changes of colour of `view`, in its order: uint8 [H, W, 3] or, without saturation and hue, [H, W]."""
    for change in view.order:
        if image.ndim == 2 and change in (SATURATION, HUE):
            continue
        if change == HUE:
            image = colours.hue(image, view.turn)
        elif view.factors[change] != 1:
            image = _BLENDS[change](image, view.factors[change])
    return image


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, C] -> uint8 [height, width, C], or [height, width] where C = 1: bicubic as the module says."""
    high, wide, channels = pixels.shape
    if high <= height and wide <= width:
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    # as channels-last memory, of which torch keeps the order and has a kernel several times as fast as Pillow's; a
    # copy, since it takes no read-only array. The same bytes as Pillow's but for roundings to the next.
    picture = torch.from_numpy(pixels.copy()).unsqueeze(0).permute(0, 3, 1, 2)  # [1, C, H, W]
    small = functional.interpolate(picture, size=(height, width), mode="bicubic", antialias=True)
    array = small[0].permute(1, 2, 0).numpy()
    return array[..., 0] if channels == 1 else array


def to_planes(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [H, W, 3] or [H, W] -> uint8 [channels, H, W], contiguous; grey in each of them."""
    planes = np.empty((channels, *image.shape[:2]), np.uint8)
    if image.ndim == 2:
        planes[:] = image
    else:
        cv2.split(image, list(planes))
    return planes


def to_array(image: Image.Image) -> np.ndarray:
    """RGB picture -> uint8 [3, H, W], grey one -> uint8 [1, H, W], contiguous."""
    pixels = np.asarray(image)
    return pixels[None].copy() if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def center(image: Image.Image, size: int) -> np.ndarray:
    """The fixed view of evaluation: shorter side to `size`, middle square. Picture -> uint8 [C, size, size],
    C = 3 of RGB and 1 of grey.

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


_BLENDS = (colours.brightness, colours.contrast, colours.saturation)
_ORDERS = tuple((a, b, c, 6 - a - b - c) for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3)
