"""Changes of a picture's colours and sharpness with OpenCV: uint8 [H, W, 3] (red, green, blue) or [H, W] -> the same.

Each rounds to bytes and clips at 0 and 255. What augment_device.py does to batches are the same formulas.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

# OpenCV would wake threads for pictures that take less time than that; a loader has a process for each core instead.
# Here, once for the whole process: a worker that is forked from one that has had such threads waits for them for ever.
cv2.setNumThreads(0)

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601
SOLARISE_FROM = 128
LEAST_SIGMA = 0.25
"""Of a blur, in pixels: below, neighbours weigh less than e^-8 and no byte would change."""
_AS_IT_IS = np.eye(3)
_SOLARISED = np.where(np.arange(256) < SOLARISE_FROM, np.arange(256), 255 - np.arange(256)).astype(np.uint8)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Every channel times `factor`."""
    return cv2.addWeighted(image, factor, image, 0, 0)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Moved away from (factor > 1) or towards the picture's mean luminance."""
    channels = cv2.mean(image)
    mean = channels[0] if image.ndim == 2 else float(np.dot(LUMA, channels[:3]))
    return cv2.addWeighted(image, factor, image, 0, (1 - factor) * mean)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Moved away from (factor > 1) or towards its own grey version. For colours only."""
    return cv2.transform(image, factor * _AS_IT_IS + (1 - factor) * LUMA)


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Hue moved by `turn` (in turns, -.5 to .5), in HSV with 256 hues. For colours only."""
    shift = round(turn * 256) % 256
    if shift == 0:
        return image
    turned = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    turned[..., 0] += np.uint8(shift)  # wraps, as the wheel does
    return cv2.cvtColor(turned, cv2.COLOR_HSV2RGB_FULL)


def to_grey(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: its luminance. For colours only."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, cut off at `blur_reach`; what lies beyond an edge has the value of the edge."""
    if sigma < LEAST_SIGMA:
        return image
    kernel = cv2.getGaussianKernel(2 * blur_reach(sigma) + 1, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


def blur_reach(sigma: float) -> int:
    """Pixels to either side that a blur looks at: three sigma."""
    return math.ceil(3 * sigma)


def solarise(image: np.ndarray) -> np.ndarray:
    """Inverts what is at least SOLARISE_FROM."""
    return cv2.LUT(image, _SOLARISED)
