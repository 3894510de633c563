"""Crops have the papers' numbers and sides, are the same wherever they are made, and what cannot be is refused."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bigssl.config.errors import ConfigError
from bigssl.data.kinds.multicrop import SCHEMES, MultiCrop, MultiCropConfig, Scheme
from bigssl.data.loading.collate import collate

# smallest and largest share, brightness ±, saturation ±, blur, solarise: of both large crops and of small ones
PAPERS = {
    "dino": [(0.4, 1, 0.4, 0.2, 1.0, 0.0), (0.4, 1, 0.4, 0.2, 0.1, 0.2), (0.05, 0.4, 0.4, 0.2, 0.5, 0.0)],
    "swav": [(0.14, 1, 0.8, 0.8, 0.5, 0.0), (0.14, 1, 0.8, 0.8, 0.5, 0.0), (0.05, 0.14, 0.8, 0.8, 0.5, 0.0)],
}


def crops(size: int = 32, patch: int = 8, own: Scheme = "dino", **fields: Any) -> MultiCrop:
    return MultiCrop(MultiCropConfig.model_validate(fields), size, patch, own)


def picture(seed: int, height: int = 60, width: int = 50) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.blur(noise, (3, 3))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_crops_are_drawn_as_the_papers_say(scheme: Scheme) -> None:
    made = crops(224, 16, scheme)
    assert made.small_size == 96 and made.small == 6
    for distribution, paper in zip([*made.large, made.little], PAPERS[scheme], strict=True):
        rng, n = np.random.default_rng(0), 3000
        views = [distribution.draw(200, 200, rng) for _ in range(n)]
        low, high, blend, saturation, blur, solarise = paper
        areas = np.array([(v.box[2] - v.box[0]) * (v.box[3] - v.box[1]) / 40_000 for v in views])
        assert low - 0.004 < areas.min() < low + 0.02 and high - 0.1 < areas.max() < high + 0.004
        if high < 1:  # of whole ones, some do not fit and are drawn again
            assert areas.mean() == pytest.approx((low + high) / 2, abs=0.01)
        for share, happened in ((blur, [v.sigma > 0 for v in views]), (solarise, [v.solarise for v in views])):
            assert abs(np.mean(happened) - share) <= 4 * np.sqrt(share * (1 - share) / n)
        sigmas = np.array([v.sigma for v in views if v.sigma])  # in pixels, of small crops too
        assert 0.1 <= sigmas.min() < 0.15 and 1.9 < sigmas.max() <= 2.0
        largest = np.abs(np.array([v.factors for v in views]) - 1).max(0)
        assert largest == pytest.approx([blend, blend, saturation], rel=0.03)


def test_a_picture_too_narrow_for_a_crop_gives_a_square_that_is_no_larger_than_asked() -> None:
    made = crops(smallest=0.3, split=0.4)
    boxes = [made.little.draw(400, 10, np.random.default_rng(seed)).box for seed in range(20)]
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {(10, 10)}


def test_both_devices_make_the_same_crops_in_the_same_order() -> None:
    """View by view: first crops of all samples, then second ones, then each small one."""
    found = []
    for device in ("cpu", "accelerator"):
        made = crops(96, small=3, blur=1.0, device=device)
        prepared = [made.prepare(picture(seed), np.random.default_rng(seed)) for seed in range(5)]
        found.append(made.of(collate(prepared)))
        alone = made.of(collate(prepared[2:3]))
        for whole, part in zip(found[-1], alone, strict=True):
            assert torch.equal(whole.unflatten(0, (-1, 5))[:, 2], part)
    for here, there in zip(*found, strict=True):
        assert here.dtype == there.dtype == torch.uint8 and here.shape == there.shape
        assert (here.float() - there.float()).abs().mean() < 2
    assert [list(each.shape) for each in found[0]] == [[10, 3, 96, 96], [15, 3, 40, 40]]
    small = found[0][1].unflatten(0, (3, 5)).float()
    assert (small[0] - small[1]).abs().mean() > 5  # each is drawn anew


def test_no_small_crops_are_two_views() -> None:
    made = crops(small=0)
    prepared = made.prepare(picture(0), np.random.default_rng(0))
    assert set(prepared) == {"view1", "view2"} and len(made.of(collate([prepared]))) == 1


@pytest.mark.parametrize(("size", "patch", "side"), [(224, 14, 98), (64, 8, 24), (32, 4, 12), (32, 1, 14), (8, 8, 8)])
def test_small_crops_are_whole_patches(size: int, patch: int, side: int) -> None:
    assert crops(size, patch).small_size == side


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"small_size": 4}, "objective.crops.small_size: value 4; allowed: a multiple of 8, the backbone's"),
        ({"small_size": 40}, "objective.crops.small_size: value 40; allowed: .* up to 32, its size"),
        ({"smallest": 0.5}, "objective.crops.smallest: value 0.5; allowed: <= 0.4, which is objective.crops.split"),
    ],
)
def test_crops_that_cannot_be_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        crops(**fields)


@pytest.mark.parametrize("fields", [{"canvas": 64}, {"small": 0, "small_size": 8}, {"small": 0, "smallest": 0.1}])
def test_a_field_without_effect_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="has no effect with"):
        MultiCropConfig.model_validate(fields)
