"""Views rendered in batches are those that the workers render one by one; each change is its formula in loops."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import slowly
import torch
from torch.overrides import TorchFunctionMode

from bigssl.data.kinds import augment_device
from bigssl.data.kinds.augment import SimClrAugment, View, render
from bigssl.data.kinds.augment_device import jitter_batch, on_canvas, placed, render_batch
from bigssl.data.kinds.views import PRESETS, Preset
from bigssl.data.loading.collate import collate

SIDE = 72


def picture(seed: int, width: int = SIDE, height: int = SIDE, channels: int = 3) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return cv2.blur(pixels, (3, 3)).reshape(pixels.shape)


def size_of(pixels: np.ndarray) -> tuple[int, int]:
    return pixels.shape[1], pixels.shape[0]


def both(pictures: list[np.ndarray], views: list[View], size: int, sigma: float, side: int = SIDE) -> torch.Tensor:
    """float32 [2, B, C, size, size]: the batch by the device's path, and by the workers' sample by sample."""
    canvases, scales = zip(*(on_canvas(image, side) for image in pictures), strict=True)
    numbers = [placed(v, *size_of(image), s) for v, image, s in zip(views, pictures, scales, strict=True)]
    batched = render_batch(collate(canvases), collate(numbers), size, sigma)
    assert (batched.dtype, batched.shape) == (torch.uint8, (len(pictures), pictures[0].shape[2], size, size))
    single = torch.from_numpy(np.stack([render(image, v, size) for v, image in zip(views, pictures, strict=True)]))
    return torch.stack([batched, single]).float()


def whole(image: np.ndarray) -> tuple[int, int, int, int]:
    return (0, 0, *size_of(image))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("size", "channels"), [(24, 3), (50, 3), (50, 1)])
def test_both_paths_agree(preset: Preset, size: int, channels: int) -> None:
    pictures = [picture(i, 40 + i % 30, SIDE - 2 * (i % 16), channels) for i in range(24)]
    for part in PRESETS[preset]:
        distribution = SimClrAugment(size, **part)  # type: ignore[arg-type]
        rng = np.random.default_rng(1)
        views = [distribution.draw(*size_of(image), rng) for image in pictures]
        batched, single = both(pictures, views, size, distribution.largest_sigma)
        solarised = torch.tensor([view.solarise for view in views])
        difference = (batched - single)[~solarised]
        # the workers cut to bytes after each of up to nine steps and have 256 hues
        assert difference.abs().mean((1, 2, 3)).max() < 1.2
        assert difference.abs().quantile(0.999) <= 7 and difference.abs().max() <= 20
        assert difference.mean().abs() < 0.1
        assert (batched - single).abs().mean((1, 2, 3)).max() < 3  # at the threshold a byte more is its inverse


@pytest.mark.parametrize("size", [7, 24, 72, 100])
def test_crops_agree_to_a_byte(size: int) -> None:
    pictures = [picture(i, 30 + i, 70 - i) for i in range(16)]
    rng = np.random.default_rng(0)
    mae = SimClrAugment(size, jitter=0, grey=0, blur=0, min_scale=0.05)
    views = [mae.draw(*size_of(image), rng) for image in pictures]
    assert len({view.flip for view in views}) == 2
    batched, single = both(pictures, views, size, 0.0)
    assert (batched - single).abs().max() <= 1


def test_a_crop_between_pixels_is_between_its_neighbours() -> None:
    """On a canvas to which a picture was reduced, boxes do not end at pixels."""
    ramp = torch.arange(64.0).view(1, 1, 1, 64).expand(1, 3, 64, 64) * 4
    for box, size in (((10.3, 8.0, 42.3, 40.0), 16), ((10.3, 8.0, 18.3, 16.0), 16)):
        found = augment_device.crop(ramp, torch.tensor([box]), size)[0, 0, 4, 3:-3]
        step = (box[2] - box[0]) / size
        exact = 4 * (box[0] + (torch.arange(size) + 0.5) * step - 0.5)[3:-3]
        assert (found - exact).abs().max() < 0.5


@pytest.mark.parametrize("size", [16, 72])
def test_blur_agrees_to_a_byte_and_is_gaussian(size: int) -> None:
    sigmas = [0.0, 0.1, 0.24, 0.25, 0.4, 0.7, 1.0, 1.3, 1.7, 2.0, 3.5]
    pictures = [picture(i, size, size) for i in range(len(sigmas))]
    views = [View(whole(image), sigma=sigma) for image, sigma in zip(pictures, sigmas, strict=True)]
    batched, single = both(pictures, views, size, max(sigmas))
    assert torch.equal(batched[:3], single[:3])
    assert (batched - single).abs().max() <= 1
    for image, sigma, found in zip(pictures, sigmas, batched.numpy(), strict=True):
        assert np.abs(found.transpose(1, 2, 0) - slowly.blurred(image, sigma)).max() < 0.51


def jittered(images: torch.Tensor, **numbers: object) -> torch.Tensor:
    """float [B, 3, H, W] changed as each `View(**numbers)` says."""
    views = collate([View((0, 0, 1, 1), **numbers).arrays() for _ in images])  # type: ignore[arg-type]
    return jitter_batch(images, views["factors"], views["turn"], views["order"])


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.8])
@pytest.mark.parametrize("change", [0, 1, 2])
def test_blends_are_their_formulas(change: int, factor: float) -> None:
    images = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 255
    factors = tuple(factor if kind == change else 1.0 for kind in range(3))
    for image, changed in zip(images.numpy(), jittered(images, factors=factors).numpy(), strict=True):
        expected = slowly.blend(image.transpose(1, 2, 0), change, factor)
        np.testing.assert_allclose(changed.transpose(1, 2, 0), expected, atol=1e-3)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.02, 0.2, 0.5])
def test_hue_is_colorsys(turn: float) -> None:
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 255
    images[1, :, 0] = images[1, :1, 0]  # greys have no hue
    images[1, :, 1] = torch.tensor([[255.0], [255.0], [0.0]])  # two channels are the largest
    images[1, :, 2] = 0
    got = augment_device.hue_batch(images, torch.full((2,), turn))
    for image, changed in zip(images.numpy(), got.numpy(), strict=True):
        expected = slowly.hue(image.transpose(1, 2, 0), turn)
        np.testing.assert_allclose(changed.transpose(1, 2, 0), expected, atol=2e-2)


def test_the_order_of_changes_is_each_samples() -> None:
    """All 24 orders in one batch, each against the four changes one after another."""
    orders = [(a, b, c, 6 - a - b - c) for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3]
    images = torch.rand(24, 3, 6, 5, generator=torch.Generator().manual_seed(2)) * 255
    factors, turn = (1.6, 0.5, 1.9), 0.15
    views = collate([View((0, 0, 1, 1), factors=factors, turn=turn, order=order).arrays() for order in orders])
    got = jitter_batch(images, views["factors"], views["turn"], views["order"])
    for image, order, changed in zip(images, orders, got, strict=True):
        expected = image[None]
        for change in order:
            alone = tuple(factors[k] if k == change else 1.0 for k in range(3))
            expected = jittered(expected, factors=alone, turn=turn if change == 3 else 0.0)
        torch.testing.assert_close(changed[None], expected, atol=1e-2, rtol=0)
    assert len({tuple(changed.flatten().round().tolist()) for changed in got}) > 4


def test_nothing_drawn_changes_nothing() -> None:
    pictures = [picture(0), picture(1)]
    batched, single = both(pictures, [View(whole(image)) for image in pictures], SIDE, 1.0)
    assert torch.equal(batched, single)
    np.testing.assert_array_equal(batched[0].byte().numpy(), pictures[0].transpose(2, 0, 1))


def test_samples_do_not_see_each_other() -> None:
    pictures = [picture(i, 60, 50 + i) for i in range(6)]
    distribution, rng = SimClrAugment(20, solarise=0.5), np.random.default_rng(3)
    views = [distribution.draw(*size_of(image), rng) for image in pictures]
    together = both(pictures, views, 20, 1.0)[0]
    alone = torch.cat([both([image], [view], 20, 1.0)[0] for image, view in zip(pictures, views, strict=True)])
    assert (together - alone).abs().max() <= 1  # sums in another order may round to the next byte
    assert (together == alone).float().mean() > 0.999


def test_grey_and_solarise() -> None:
    views = [View(whole(picture(0)), grey=True), View(whole(picture(0)), solarise=True)]
    grey, solarised = both([picture(0), picture(0)], views, SIDE, 0.0)[0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    original = torch.from_numpy(picture(0).transpose(2, 0, 1).copy()).float()
    assert torch.equal(solarised, torch.where(original < 128, original, 255 - original))


def test_larger_pictures_are_reduced_to_the_canvas() -> None:
    image = cv2.GaussianBlur(picture(0, 300, 200), (0, 0), 6)
    canvas, scale = on_canvas(image, 150)
    assert (canvas.shape, scale) == ((3, 150, 150), 0.5)
    assert canvas[:, 100:].max() == 0 and canvas[:, :100].min() > 0
    views = [SimClrAugment(64).draw(300, 200, np.random.default_rng(seed)) for seed in range(8)]
    batched, single = both([image] * 8, views, 64, 1.0, side=150)
    assert (batched - single).abs().mean() < 1.5
    assert on_canvas(picture(0, 1000, 1), 100)[1] == pytest.approx(0.1)
    assert math.isclose(float(placed(View((0, 0, 1000, 1)), 1000, 1, 0.1)["box"][3]), 1)  # type: ignore[index]


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
        cropped = augment_device.crop(pixels, numbers["box"], 16)
        coloured = jitter_batch(cropped, numbers["factors"], numbers["turn"], numbers["order"])
        weights = augment_device.blur_weights(numbers["sigma"], 16, 2)
    assert cropped.shape == coloured.shape == (3, 3, 16, 16) and weights.shape == (3, 16, 16)


def test_bf16_autocast_leaves_the_bytes_alone() -> None:
    image, view = picture(5), View((3, 4, 50, 60), factors=(1.2, 0.8, 1.1), turn=0.1, sigma=0.8)
    canvas, numbers = collate([on_canvas(image, SIDE)[0]]), collate([placed(view, SIDE, SIDE, 1.0)])
    plain = render_batch(canvas, numbers, 32, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(render_batch(canvas, numbers, 32, 1.0), plain)
