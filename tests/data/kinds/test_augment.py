"""Views have the distribution of the SimCLR paper and the pixels of slow formulas; the evaluation view is fixed."""

from __future__ import annotations

import math
from collections import Counter

import cv2
import numpy as np
import pytest
import slowly
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from bigssl.data.kinds.augment import SimClrAugment, View, center, crop_box, render, resize, to_array


def noise(width: int, height: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """uint8 [H, W, C]: a colourful picture, smooth enough that resampling keeps it alive."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return cv2.blur(pixels, (3, 3)).reshape(pixels.shape)


def planes(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 0, 1)


def sigma(p: float, n: int) -> float:
    return math.sqrt(p * (1 - p) / n)


def plain(**options: float) -> SimClrAugment:
    """Everything off except `options`; with min_scale 1 the crop of a square is the square."""
    return SimClrAugment(**{"size": 16, "min_scale": 1.0, "flip": False, "jitter": 0, "grey": 0, "blur": 0} | options)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("size", [(64, 64), (100, 40), (5, 9), (1, 1)])
def test_a_view_is_uint8_of_the_size(size: tuple[int, int], channels: int) -> None:
    augmented, picture = SimClrAugment(24, solarise=0.2), noise(*size, channels=channels)
    before = picture.copy()
    views = [augmented(picture, np.random.default_rng(seed)) for seed in range(20)]
    assert {(v.shape, v.dtype.name, v.flags.c_contiguous) for v in views} == {((channels, 24, 24), "uint8", True)}
    np.testing.assert_array_equal(picture, before)


def test_a_view_is_a_function_of_its_generator() -> None:
    picture, augmented = noise(64, 64), SimClrAugment(32)
    views = [augmented(picture, np.random.default_rng(seed)) for seed in (1, 2, 1)]
    np.testing.assert_array_equal(views[0], views[2])
    assert (views[0] != views[1]).any()


def test_everything_off_is_the_identity() -> None:
    picture = noise(16, 16)
    np.testing.assert_array_equal(plain()(picture, np.random.default_rng(0)), planes(picture))


@pytest.mark.parametrize(
    ("options", "probability"),
    [
        ({"flip": True}, 0.5),
        ({"jitter": 1.0}, 0.8),
        ({"grey": 0.2}, 0.2),
        ({"blur": 0.5}, 0.5),
        ({"solarise": 0.3}, 0.3),
    ],
)
def test_how_often_each_change_happens(options: dict[str, float], probability: float) -> None:
    # a faint blur of a small view leaves every byte as it is
    augmented, n = plain(**options | ({"size": 224} if "blur" in options else {})), 500 if "blur" in options else 2000
    picture = noise(augmented.size, augmented.size)
    same = planes(picture)
    rng = np.random.default_rng(0)
    share = np.mean([(augmented(picture, rng) != same).any() for _ in range(n)])
    assert abs(share - probability) < 4 * sigma(probability, n)


def test_flip_mirrors_left_and_right() -> None:
    picture = noise(16, 16)
    seen = {plain(flip=True)(picture, np.random.default_rng(s)).tobytes() for s in range(20)}
    assert seen == {planes(picture).tobytes(), planes(picture)[:, :, ::-1].tobytes()}


def slow_crop(width: int, height: int, low: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Inception's random resized crop in other words, as (left, top, width, height)."""
    for _ in range(10):
        area, log_ratio = rng.uniform(low, 1) * width * height, rng.uniform(math.log(3 / 4), math.log(4 / 3))
        w, h = round(math.sqrt(area * math.exp(log_ratio))), round(math.sqrt(area / math.exp(log_ratio)))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


@pytest.mark.parametrize(("width", "height", "low"), [(64, 64, 0.08), (64, 64, 0.2), (120, 80, 0.2), (30, 200, 0.5)])
def test_crops_have_the_distribution_of_the_slow_rule(width: int, height: int, low: float) -> None:
    n, rng = 10_000, np.random.default_rng(1)
    ours = np.array([crop_box(width, height, low, rng) for _ in range(n)], dtype=float)
    ours[:, 2:] -= ours[:, :2]
    theirs = np.array([slow_crop(width, height, low, rng) for _ in range(n)], dtype=float)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= width).all()
    assert (ours[:, 1] + ours[:, 3] <= height).all()
    for column in range(4):
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, column])
        grid = np.union1d(a, b)
        distance = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max() / n
        assert distance < 1.95 * math.sqrt(2 / n), column  # Kolmogorov-Smirnov, p = .001


def draws(n: int, augmented: SimClrAugment) -> list[View]:
    rng = np.random.default_rng(0)
    return [augmented.draw(64, 64, rng) for _ in range(n)]


@pytest.mark.parametrize(("jitter", "saturation"), [(0.5, 0.8), (0.5, 0.4), (1.0, 0.8)])
def test_jitter_draws_uniform_strengths_in_every_order(jitter: float, saturation: float) -> None:
    views = [view for view in draws(6000, plain(jitter=jitter, saturation=saturation)) if view.turn]
    n = len(views)
    assert abs(n / 6000 - 0.8) < 4 * sigma(0.8, 6000)
    orders = Counter(view.order for view in views)
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2, 3)} and len(orders) == 24
    assert max(abs(count / n - 1 / 24) for count in orders.values()) < 5 * sigma(1 / 24, n)
    values = np.array([[*view.factors, view.turn] for view in views]).T
    spreads = [0.8 * jitter, 0.8 * jitter, saturation * jitter, 0.2 * jitter]
    for drawn, middle, spread in zip(values, [1, 1, 1, 0], spreads, strict=True):
        uniform = (np.sort(drawn) - (middle - spread)) / (2 * spread)
        assert np.abs(uniform - np.arange(n) / n).max() < 1.95 / math.sqrt(n)
    assert np.abs(np.corrcoef(values)[np.triu_indices(4, 1)]).max() < 4 / math.sqrt(n)


def test_blur_draws_uniform_sigmas_in_proportion_to_the_view() -> None:
    for size in (32, 224):
        found = np.sort([view.sigma for view in draws(3000, plain(blur=1.0, size=size))]) * 224 / size
        assert np.abs((found - 0.1) / 1.9 - np.arange(3000) / 3000).max() < 1.95 / math.sqrt(3000)
    assert plain(blur=1.0, size=224).largest_sigma == 2.0
    assert plain().largest_sigma == 0.0


# a mirrored crop of 12 x 21 and everything else that may happen to it, enlarged to 24 and reduced to 9
LOUD = View((3, 5, 15, 26), True, (1.3, 0.6, 1.7), 0.12, (2, 3, 1, 0), sigma=0.8)
VIEWS = [LOUD, View(LOUD.box, grey=True, factors=(0.4, 1.9, 0.2)), View(LOUD.box, turn=-0.4, solarise=True)]


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("size", [24, 9])
@pytest.mark.parametrize("view", VIEWS)
def test_views_are_their_formulas(view: View, size: int, channels: int) -> None:
    pixels = noise(20, 30, channels=channels)
    difference = render(pixels, view, size) - slowly.render(pixels, view, size)
    if view.solarise:  # half a byte at the threshold is a byte and its inverse
        difference = difference[np.abs(slowly.render(pixels, view, size) - 127) > 2]
    assert np.abs(difference).mean() < 0.8 and np.abs(difference).max() < 6  # up to nine roundings, 256 hues


def test_changes_happen_in_the_order_of_the_view() -> None:
    """In another order another picture, in each case that of the slow formulas."""
    pixels, found = noise(8, 8), []
    for order in [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)]:
        view = View((0, 0, 8, 8), factors=(1.6, 0.5, 1.9), turn=0.15, order=order)
        found.append(render(pixels, view, 8).astype(float))
        assert np.abs(found[-1] - slowly.render(pixels, view, 8)).mean() < 1
    assert min(np.abs(a - b).mean() for n, a in enumerate(found) for b in found[:n]) > 5


@pytest.mark.parametrize(("shape", "size"), [((17, 19), 64), ((1, 5), 16), ((40, 30), 32), ((90, 9), 8)])
@pytest.mark.parametrize("channels", [3, 1])
def test_resizing_is_bicubic_and_antialiased(shape: tuple[int, int], size: int, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    found = resize(pixels, size, size).reshape(size, size, channels)
    assert np.abs(found - slowly.resized(pixels, size)).max() < 1.6  # a byte after each axis
    if max(shape) > size and channels == 3 and min(shape) > size:
        pillows = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC), dtype=float)
        assert np.abs(found - pillows).max() <= 1


def test_what_is_finer_than_a_view_becomes_its_mean() -> None:
    """Stripes of a pixel each, which interpolation without a wider kernel turns into broad ones."""
    stripes = np.tile(np.array([0, 255], np.uint8)[:, None, None], (50, 100, 3))  # [100, 100, 3]
    for shown in (stripes, stripes.transpose(1, 0, 2)):
        inside = resize(np.ascontiguousarray(shown), 35, 35)[1:-1, 1:-1].astype(float)
        assert np.abs(inside - 127.5).max() < 12


def test_nothing_outside_a_crop_is_seen() -> None:
    pixels = noise(40, 40)
    around = 255 - pixels
    around[10:30, 8:35] = pixels[10:30, 8:35]
    for size in (12, 24, 50):
        view = View((8, 10, 35, 30), sigma=0.5)
        np.testing.assert_array_equal(render(pixels, view, size), render(around, view, size))


def pillow_view(image: Image.Image, view: View, size: int) -> np.ndarray:
    """The same with Pillow's own changes, where it has them: [3, size, size]."""
    image = image.crop(view.box).resize((size, size), Image.Resampling.BICUBIC)
    image = ImageOps.mirror(image) if view.flip else image
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for change in view.order:
        if change == 3:
            pixels = np.array(image.convert("HSV"))
            pixels[..., 0] += np.uint8(round(view.turn * 255) % 256)
            image = Image.fromarray(pixels, "HSV").convert("RGB") if view.turn else image
        else:
            image = enhancers[change](image).enhance(view.factors[change])
    image = image.convert("L").convert("RGB") if view.grey else image
    image = image.filter(ImageFilter.GaussianBlur(view.sigma)) if view.sigma >= 0.25 else image
    return to_array(ImageOps.solarize(image, 128) if view.solarise else image)


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
@pytest.mark.parametrize(("side", "size"), [(48, 48), (120, 48)])
def test_views_are_nearly_pillows(side: int, size: int) -> None:
    """Same numbers, another renderer: a bound on each view, and no shift of the colours of all of them."""
    distribution, rng, differences = SimClrAugment(size, min_scale=0.08), np.random.default_rng(0), []
    for seed in range(40):
        pixels = noise(side, side - 9, seed)
        view = distribution.draw(side, side - 9, rng)
        there = pillow_view(Image.fromarray(pixels), view, size)
        differences.append(render(pixels, view, size).astype(float) - there)
        assert np.abs(differences[-1]).mean() < 4, view
    assert np.abs(differences).mean() < 1.8
    assert abs(np.mean(differences)) < 1.5  # Pillow cuts off, on average half a byte in each of up to nine steps


def test_center() -> None:
    picture = noise(12, 12)
    np.testing.assert_array_equal(center(Image.fromarray(picture), 12), planes(picture))
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    view = center(wide, 10)
    assert view.shape == (3, 10, 10)
    assert view[:, 5, 5].tolist() == [0, 0, 255]
    assert center(wide, 5).shape == (3, 5, 5)
