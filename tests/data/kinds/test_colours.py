"""Each change of colour is its formula in float64, on pictures of three channels and of one."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
import slowly

from bigssl.data.kinds import colours

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
GREY = PICTURE[..., :1]


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.8])
def test_blends_are_their_formulas(factor: float) -> None:
    for change, name in enumerate(("brightness", "contrast", "saturation")):
        found = getattr(colours, name)(PICTURE, factor)
        assert np.abs(found - slowly.blend(PICTURE, change, factor)).max() < 0.8, name
    for change, name in enumerate(("brightness", "contrast")):
        found = getattr(colours, name)(GREY[..., 0], factor)[..., None]
        assert np.abs(found - slowly.blend(GREY, change, factor)).max() < 0.51, name


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.001, 0.2])
def test_hue_turns_the_colour_wheel(turn: float) -> None:
    difference = np.abs(colours.hue(PICTURE, turn) - slowly.hue(PICTURE, turn))
    assert difference.mean() < 1  # hue travels in 256 steps
    assert difference.max() < 9
    if abs(turn) < 1 / 512:
        assert np.array_equal(colours.hue(PICTURE, turn), PICTURE)


@pytest.mark.parametrize("sigma", [0.1, 0.25, 0.57, 1.0, 2.0])
def test_blur_is_a_gaussian(sigma: float) -> None:
    assert np.abs(colours.blur(PICTURE, sigma) - slowly.blurred(PICTURE, sigma)).max() < 0.6
    assert np.abs(colours.blur(GREY[..., 0], sigma)[..., None] - slowly.blurred(GREY, sigma)).max() < 0.6


def test_grey_and_solarise() -> None:
    assert np.abs(colours.to_grey(PICTURE)[..., None] - slowly.grey(PICTURE)).max() < 0.6
    for image in (PICTURE, GREY[..., 0]):
        assert np.array_equal(colours.solarise(image), np.where(image < 128, image, 255 - image))


def test_opencv_starts_no_threads() -> None:
    """A worker that is forked from a process that has had them would wait for them."""
    before = os.listdir("/proc/self/task")
    colours.blur(np.zeros((2000, 2000, 3), np.uint8), 5.0)
    cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (1000, 1000))
    assert os.listdir("/proc/self/task") == before
