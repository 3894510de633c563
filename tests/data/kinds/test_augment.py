"""Views have the distribution of the SimCLR paper, checked against slow formulas; the evaluation view is fixed."""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from bigssl.data.kinds import augment
from bigssl.data.kinds.augment import SimClrAugment, View, center, crop_box, to_array


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A colourful picture, smooth enough that resampling keeps it alive."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.BoxBlur(1))


def sigma(p: float, n: int) -> float:
    return math.sqrt(p * (1 - p) / n)


def plain(**options: float) -> SimClrAugment:
    """Everything off except `options`; with min_scale 1 the crop of a square is the square."""
    return SimClrAugment(**{"size": 16, "min_scale": 1.0, "flip": False, "jitter": 0, "grey": 0, "blur": 0} | options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(64, 64), (100, 40), (5, 9), (1, 1)])
def test_a_view_is_uint8_of_the_size(size: tuple[int, int]) -> None:
    augmented = SimClrAugment(24, solarise=0.2)
    views = [augmented(np.asarray(noise(*size)), np.random.default_rng(seed)) for seed in range(20)]
    assert {(view.shape, view.dtype.name, view.flags.c_contiguous) for view in views} == {((3, 24, 24), "uint8", True)}


def test_a_view_is_a_function_of_its_generator() -> None:
    picture, augmented = noise(64, 64), SimClrAugment(32)
    views = [augmented(np.asarray(picture), np.random.default_rng(seed)) for seed in (1, 2, 1)]
    np.testing.assert_array_equal(views[0], views[2])
    assert (views[0] != views[1]).any()


def test_everything_off_is_the_identity() -> None:
    picture = noise(16, 16)
    np.testing.assert_array_equal(plain()(np.asarray(picture), np.random.default_rng(0)), to_array(picture))


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
    same = to_array(picture)
    rng = np.random.default_rng(0)
    share = np.mean([(augmented(np.asarray(picture), rng) != same).any() for _ in range(n)])
    assert abs(share - probability) < 4 * sigma(probability, n)


def test_flip_mirrors_left_and_right() -> None:
    picture = noise(16, 16)
    seen = {plain(flip=True)(np.asarray(picture), np.random.default_rng(s)).tobytes() for s in range(20)}
    assert seen == {to_array(picture).tobytes(), to_array(picture)[:, :, ::-1].tobytes()}


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
    n, rng = 20_000, np.random.default_rng(1)
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


def test_changes_happen_in_the_order_of_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float]] = []

    def spy(name: str) -> Callable[[Image.Image, float], Image.Image]:
        def change(image: Image.Image, value: float) -> Image.Image:
            calls.append((name, value))
            return image

        return change

    monkeypatch.setattr(augment, "_BLENDS", tuple(map(spy, ("brightness", "contrast", "saturation"))))
    monkeypatch.setattr(augment, "hue", spy("hue"))
    view = View((0, 0, 4, 4), factors=(0.5, 1.0, 1.5), turn=0.1, order=(2, 3, 1, 0))
    augment.jitter(noise(4, 4), view)
    assert calls == [("saturation", 1.5), ("hue", 0.1), ("brightness", 0.5)]  # contrast by 1 is left out


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=float)


def luma(image: Image.Image) -> np.ndarray:
    return pixels(image) @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
def test_blends_are_their_formulas(factor: float) -> None:
    picture = noise(16, 16)
    grey = luma(picture)
    anchors = {"brightness": 0.0, "contrast": grey.mean(), "saturation": grey[..., None]}
    for name, anchor in anchors.items():
        changed = pixels(getattr(augment, name)(picture, factor))
        expected = np.clip(factor * pixels(picture) + (1 - factor) * anchor, 0, 255)
        assert np.abs(changed - expected).max() <= 2, name  # bytes in between


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.2])
def test_hue_turns_the_colour_wheel(turn: float) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    expected = []
    for pixel in pixels(picture).reshape(-1, 3) / 255:
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
    difference = np.abs(pixels(augment.hue(picture, turn)).reshape(-1, 3) - 255 * np.array(expected))
    assert difference.mean() < 2  # hue travels in 256 steps
    assert difference.max() < 9


def test_blur_grows_with_the_view() -> None:
    """Sigma is at most 2 pixels of 224: the roughness that is left is larger in small views."""

    def roughness(size: int) -> float:
        rng = np.random.default_rng(0)
        picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8))
        views = [plain(blur=1.0, size=size)(np.asarray(picture), rng).astype(float) for _ in range(30)]
        return float(np.mean([np.abs(np.diff(view)).mean() for view in views]))

    assert roughness(224) < 0.5 * roughness(32)


def test_center() -> None:
    picture = noise(12, 12)
    np.testing.assert_array_equal(center(picture, 12), to_array(picture))
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    view = center(wide, 10)
    assert view.shape == (3, 10, 10)
    assert view[:, 5, 5].tolist() == [0, 0, 255]
    assert center(wide, 5).shape == (3, 5, 5)


def test_a_thousand_views_take_no_minute() -> None:
    """Not a benchmark: catches a step that became a hundred times slower."""
    augmented, picture, rng = SimClrAugment(64), noise(64, 64), np.random.default_rng(0)
    assert sum(augmented(np.asarray(picture), rng).shape[0] for _ in range(1000)) == 3000
