"""Views rendered in batches are those that Pillow renders one by one; colours are their formulas in loops."""

from __future__ import annotations

import colorsys
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch.overrides import TorchFunctionMode

from bigssl.data.kinds import augment_device
from bigssl.data.kinds.augment import SimClrAugment, View, render, to_array
from bigssl.data.kinds.augment_device import on_canvas, placed, render_batch
from bigssl.data.kinds.views import PRESETS, Preset
from bigssl.data.loading.collate import collate

SIDE = 72


def picture(seed: int, width: int = SIDE, height: int = SIDE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.BoxBlur(1))


def both(pictures: list[Image.Image], views: list[View], size: int, sigma: float, side: int = SIDE) -> torch.Tensor:
    """float32 [2, B, 3, size, size]: the batch by the device's path, and by Pillow sample by sample."""
    canvases, scales = zip(*(on_canvas(image, side) for image in pictures), strict=True)
    numbers = [placed(v, *image.size, s) for v, image, s in zip(views, pictures, scales, strict=True)]
    batched = render_batch(collate(canvases), collate(numbers), size, sigma)
    assert (batched.dtype, batched.shape) == (torch.uint8, (len(pictures), 3, size, size))
    single = torch.from_numpy(np.stack([render(image, v, size) for v, image in zip(views, pictures, strict=True)]))
    return torch.stack([batched, single]).float()


def whole(image: Image.Image) -> tuple[int, int, int, int]:
    return (0, 0, *image.size)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [24, 50])
def test_presets_agree_with_pillow(preset: Preset, size: int) -> None:
    pictures = [picture(i, 40 + i % 30, SIDE - 2 * (i % 16)) for i in range(24)]
    for part in PRESETS[preset]:
        distribution = SimClrAugment(size, **part)  # type: ignore[arg-type]
        rng = np.random.default_rng(1)
        views = [distribution.draw(*image.size, rng) for image in pictures]
        ours, pillows = both(pictures, views, size, distribution.largest_sigma)
        difference = (ours - pillows).abs()
        # Pillow cuts to bytes after each of up to nine steps, half a byte on average, and has 256 hues
        assert difference.mean((1, 2, 3)).max() < 3
        assert difference.quantile(0.999) <= 8
        assert (ours - pillows).mean().abs() < 1.5


@pytest.mark.parametrize("size", [7, 24, 72, 100])
def test_crops_are_pillows(size: int) -> None:
    pictures = [picture(i, 30 + i, 70 - i) for i in range(16)]
    rng = np.random.default_rng(0)
    mae = SimClrAugment(size, jitter=0, grey=0, blur=0, min_scale=0.05)
    views = [mae.draw(*image.size, rng) for image in pictures]
    assert len({view.flip for view in views}) == 2
    ours, pillows = both(pictures, views, size, 0.0)
    assert (ours - pillows).abs().max() <= 1


@pytest.mark.parametrize("size", [16, 72])
def test_blur_is_pillows(size: int) -> None:
    sigmas = [0.0, 0.1, 0.24, 0.25, 0.4, 0.7, 1.0, 1.3, 1.7, 2.0, 3.5]
    pictures = [picture(i, size, size) for i in range(len(sigmas))]
    views = [View(whole(image), sigma=sigma) for image, sigma in zip(pictures, sigmas, strict=True)]
    ours, pillows = both(pictures, views, size, max(sigmas))
    difference = (ours - pillows).abs()
    assert torch.equal(ours[:3], pillows[:3])
    assert difference.max() <= 3 and difference.mean() < 0.6  # Pillow rounds after each of six passes


def test_blur_is_nearly_gaussian() -> None:
    """Its kernel has the variance it is asked for, and on pictures does what the textbook's kernel does."""
    size, sigmas = 41, [0.5, 1.0, 2.0, 3.0]
    impulse = torch.zeros(len(sigmas), 3, size, size)
    impulse[:, :, 20, 20] = 255
    kernels = augment_device.blur_batch(impulse, torch.tensor(sigmas), 3.0)[:, 0] / 255
    places = torch.arange(size) - 20.0
    for kernel, sigma in zip(kernels, sigmas, strict=True):
        assert kernel.sum().item() == pytest.approx(1, abs=1e-5)
        variance = (kernel.sum(0) * places**2).sum().item()
        assert variance == pytest.approx(sigma**2, rel=1e-4)
        gauss = torch.exp(-(places**2) / (2 * sigma**2))
        gauss /= gauss.sum()
        assert (kernel - gauss[:, None] * gauss).abs().sum() < 0.12


def jittered(images: torch.Tensor, **numbers: object) -> torch.Tensor:
    """float [B, 3, H, W] changed as each `View(**numbers)` says."""
    views = collate([View((0, 0, 1, 1), **numbers).arrays() for _ in images])  # type: ignore[arg-type]
    return augment_device.jitter_batch(images, views["factors"], views["turn"], views["order"])


def loops(pixel: list[float], mean: float, change: int, factor: float) -> list[float]:
    """Brightness, contrast or saturation of one pixel, as the formulas are written."""
    grey = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
    anchor = (0.0, mean, grey)[change]
    return [min(255.0, max(0.0, anchor + factor * (channel - anchor))) for channel in pixel]


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.8])
@pytest.mark.parametrize("change", [0, 1, 2])
def test_blends_are_their_formulas(change: int, factor: float) -> None:
    images = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 255
    factors = tuple(factor if kind == change else 1.0 for kind in range(3))
    got = jittered(images, factors=factors)
    for image, changed in zip(images.tolist(), got.tolist(), strict=True):
        pixels = list(zip(*(sum(channel, []) for channel in image), strict=True))
        mean = sum(0.299 * r + 0.587 * g + 0.114 * b for r, g, b in pixels) / len(pixels)
        expected = [loops(list(pixel), mean, change, factor) for pixel in pixels]
        found = list(zip(*(sum(channel, []) for channel in changed), strict=True))
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.02, 0.2, 0.5])
def test_hue_is_colorsys(turn: float) -> None:
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 255
    images[1, :, 0] = images[1, :1, 0]  # greys have no hue
    images[1, :, 1] = torch.tensor([[255.0], [255.0], [0.0]])  # two channels are the largest
    images[1, :, 2] = 0
    got = augment_device.hue_batch(images, torch.full((2,), turn))
    for image, changed in zip(images, got, strict=True):
        for before, after in zip(image.flatten(1).T.tolist(), changed.flatten(1).T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in before))
            expected = [255 * channel for channel in colorsys.hsv_to_rgb((h + turn) % 1, s, v)]
            np.testing.assert_allclose(after, expected, atol=2e-2)


def test_the_order_of_changes_is_each_samples() -> None:
    """All 24 orders in one batch, each against the four changes one after another."""
    orders = [(a, b, c, 6 - a - b - c) for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3]
    images = torch.rand(24, 3, 6, 5, generator=torch.Generator().manual_seed(2)) * 255
    factors, turn = (1.6, 0.5, 1.9), 0.15
    views = collate([View((0, 0, 1, 1), factors=factors, turn=turn, order=order).arrays() for order in orders])
    got = augment_device.jitter_batch(images, views["factors"], views["turn"], views["order"])
    for image, order, changed in zip(images, orders, got, strict=True):
        expected = image[None]
        for change in order:
            alone = tuple(factors[k] if k == change else 1.0 for k in range(3))
            expected = jittered(expected, factors=alone, turn=turn if change == 3 else 0.0)
        torch.testing.assert_close(changed[None], expected, atol=1e-2, rtol=0)
    assert len({tuple(changed.flatten().round().tolist()) for changed in got}) > 4


def test_nothing_drawn_changes_nothing() -> None:
    pictures = [picture(0), picture(1)]
    ours, pillows = both(pictures, [View(whole(image)) for image in pictures], SIDE, 1.0)
    assert torch.equal(ours, pillows)
    assert torch.equal(ours[0].byte(), torch.from_numpy(to_array(pictures[0])))


def test_samples_do_not_see_each_other() -> None:
    pictures = [picture(i, 60, 50 + i) for i in range(6)]
    distribution, rng = SimClrAugment(20, solarise=0.5), np.random.default_rng(3)
    views = [distribution.draw(*image.size, rng) for image in pictures]
    together = both(pictures, views, 20, 1.0)[0]
    alone = torch.cat([both([image], [view], 20, 1.0)[0] for image, view in zip(pictures, views, strict=True)])
    assert (together - alone).abs().max() <= 1  # sums in another order may round to the next byte
    assert (together == alone).float().mean() > 0.999


def test_grey_and_solarise() -> None:
    views = [View(whole(picture(0)), grey=True), View(whole(picture(0)), solarise=True)]
    grey, solarised = both([picture(0), picture(0)], views, SIDE, 0.0)[0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    original = torch.from_numpy(to_array(picture(0))).float()
    assert torch.equal(solarised, torch.where(original < 128, original, 255 - original))


def test_larger_pictures_are_reduced_to_the_canvas() -> None:
    image = picture(0, 300, 200).filter(ImageFilter.GaussianBlur(6))
    canvas, scale = on_canvas(image, 150)
    assert (canvas.shape, scale) == ((3, 150, 150), 0.5)
    assert canvas[:, 100:].max() == 0 and canvas[:, :100].min() > 0
    views = [SimClrAugment(64).draw(300, 200, np.random.default_rng(seed)) for seed in range(8)]
    ours, pillows = both([image] * 8, views, 64, 1.0, side=150)
    assert (ours - pillows).abs().mean() < 3
    assert on_canvas(picture(0, 1000, 1), 100)[1] == pytest.approx(0.1)
    assert math.isclose(float(placed(View((0, 0, 1000, 1)), 1000, 1, 0.1)["extent"][1]), 1)  # type: ignore[index]


class OnlyOnTheDevice(TorchFunctionMode):
    """Refuses what makes a GPU wait: values that go to the host, and tensors of several numbers that come from it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in ("item", "tolist", "nonzero", "__bool__", "__float__", "__int__", "cpu", "numpy"), name
        assert name not in ("tensor", "new_tensor", "as_tensor", "masked_select", "unique"), name
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_host() -> None:
    """On tensors that have no values: whatever asked for one would fail."""
    views = [SimClrAugment(16).draw(SIDE, SIDE, np.random.default_rng(seed)) for seed in range(3)]
    numbers = {k: v.to("meta") for k, v in collate([placed(v, SIDE, SIDE, 1.0) for v in views]).items()}
    pixels = torch.empty(3, 3, SIDE, SIDE, device="meta")
    with OnlyOnTheDevice():
        cropped = augment_device.crop(pixels, numbers["box"], numbers["extent"], 16)
        coloured = augment_device.jitter_batch(cropped, numbers["factors"], numbers["turn"], numbers["order"])
        weights = augment_device.blur_weights(numbers["sigma"], 16, 2)
    assert cropped.shape == coloured.shape == (3, 3, 16, 16) and weights.shape == (3, 16, 16)


def test_bf16_autocast_leaves_the_bytes_alone() -> None:
    image, view = picture(5), View((3, 4, 50, 60), factors=(1.2, 0.8, 1.1), turn=0.1, sigma=0.8)
    canvas, numbers = collate([on_canvas(image, SIDE)[0]]), collate([placed(view, SIDE, SIDE, 1.0)])
    plain = render_batch(canvas, numbers, 32, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(render_batch(canvas, numbers, 32, 1.0), plain)
