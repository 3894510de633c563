"""A view in float64, from the formulas: what the fast ones on a CPU and on an accelerator have to agree with."""

from __future__ import annotations

import colorsys
import math

import numpy as np

from bigssl.data.kinds.augment import View

LUMA = (0.299, 0.587, 0.114)


def keys(distance: float, a: float) -> float:
    """Keys 1981, equation 4, of |distance|."""
    x = abs(distance)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def enlarged(line: np.ndarray, size: int) -> np.ndarray:
    """[N, ...] -> [size, ...]: four taps, the edges repeated, a = -3/4."""
    out, step = [], len(line) / size
    for place in range(size):
        centre = (place + 0.5) * step - 0.5
        taps = range(math.floor(centre) - 1, math.floor(centre) + 3)
        out.append(sum(keys(centre - tap, -0.75) * line[min(max(tap, 0), len(line) - 1)] for tap in taps))
    return np.array(out)


def antialiased(line: np.ndarray, size: int) -> np.ndarray:
    """[N, ...] -> [size, ...]: the kernel with a = -1/2 as wide as the reduction, over the pixels that there are."""
    out, step = [], len(line) / size
    for place in range(size):
        centre = (place + 0.5) * step - 0.5
        weights = np.array([keys((tap - centre) / max(step, 1), -0.5) for tap in range(len(line))])
        out.append(np.tensordot(weights / weights.sum(), line, 1))
    return np.array(out)


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """[H, W, C] -> float64 [size, size, C]."""
    one = antialiased if max(pixels.shape[:2]) > size else enlarged
    wide = one(pixels.astype(float).swapaxes(0, 1), size).swapaxes(0, 1)
    return np.clip(one(np.clip(wide, 0, 255) if one is antialiased else wide, size), 0, 255)


def grey(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 1]."""
    return pixels if pixels.shape[2] == 1 else (pixels @ np.array(LUMA))[..., None]


def blend(pixels: np.ndarray, change: int, factor: float) -> np.ndarray:
    """Brightness, contrast or saturation (0, 1, 2), pixel by pixel."""
    own = grey(pixels)
    mean = sum(map(float, own.ravel())) / own.size
    out = np.empty_like(pixels, dtype=float)
    for y, x in np.ndindex(pixels.shape[:2]):
        anchor = (0.0, mean, own[y, x, 0])[change]
        for channel, value in enumerate(pixels[y, x]):
            out[y, x, channel] = min(255.0, max(0.0, anchor + factor * (value - anchor)))
    return out


def hue(pixels: np.ndarray, turn: float) -> np.ndarray:
    """Colour wheel, value and saturation as they are."""
    out = np.empty_like(pixels, dtype=float)
    for y, x in np.ndindex(pixels.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*pixels[y, x] / 255)
        out[y, x] = [255 * channel for channel in colorsys.hsv_to_rgb((h + turn) % 1, s, v)]
    return out


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian of two dimensions, cut off at three sigma along each axis, edges repeated."""
    if sigma < 0.25:
        return pixels
    reach = math.ceil(3 * sigma)
    padded = np.pad(pixels.astype(float), ((reach, reach), (reach, reach), (0, 0)), "edge")
    total, out = 0.0, np.zeros(pixels.shape)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            weight = math.exp(-(dx * dx + dy * dy) / (2 * sigma * sigma))
            total += weight
            out += weight * padded[reach + dy :, reach + dx :][: pixels.shape[0], : pixels.shape[1]]
    return out / total


def render(pixels: np.ndarray, view: View, size: int) -> np.ndarray:
    """uint8 [H, W, C] -> float64 [C, size, size], nothing rounded in between."""
    left, top, right, bottom = view.box
    image = resized(pixels[top:bottom, left:right], size)
    image = image[:, ::-1] if view.flip else image
    for change in view.order:
        if change == 3:
            image = hue(image, view.turn) if image.shape[2] == 3 else image
        elif change < 2 or image.shape[2] == 3:
            image = blend(image, change, view.factors[change])
    image = np.broadcast_to(grey(image), image.shape) if view.grey else image
    image = blurred(image, view.sigma)
    image = np.where(image < 128, image, 255 - image) if view.solarise else image
    return image.transpose(2, 0, 1)
