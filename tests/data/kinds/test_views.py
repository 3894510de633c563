"""Presets hold the papers' numbers; both devices draw the same views."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bigssl.data.kinds.views import PRESETS, AugmentConfig, Preset, TwoViews
from bigssl.data.loading.collate import collate

# crop from, flip, brightness and contrast ±, saturation ±, hue ±, grey, blur, solarise; of the first and second view
PAPERS = {
    "simclr": [(0.08, True, 0.8, 0.8, 0.2, 0.2, 0.5, 0.0)] * 2,
    "moco-v2": [(0.2, True, 0.4, 0.4, 0.1, 0.2, 0.5, 0.0)] * 2,
    "moco-v3": [(0.08, True, 0.4, 0.2, 0.1, 0.2, 1.0, 0.0), (0.08, True, 0.4, 0.2, 0.1, 0.2, 0.1, 0.2)],
    "byol": [(0.08, True, 0.4, 0.2, 0.1, 0.2, 1.0, 0.0), (0.08, True, 0.4, 0.2, 0.1, 0.2, 0.1, 0.2)],
    "mae": [(0.2, True, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)] * 2,
    "lejepa": [(0.3, True, 0.4, 0.2, 0.1, 0.2, 0.5, 0.2)] * 2,
}


def picture(seed: int, width: int, height: int) -> np.ndarray:
    return cv2.blur(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8), (3, 3))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_draw_what_the_papers_say(preset: Preset) -> None:
    pair = TwoViews(AugmentConfig(preset=preset), 224)
    for distribution, paper in zip(pair.distributions, PAPERS[preset], strict=True):
        rng, n = np.random.default_rng(0), 4000
        views = [distribution.draw(100, 100, rng) for _ in range(n)]
        low, flip, blend, saturation, hue, grey, blur, solarise = paper
        areas = [(v.box[2] - v.box[0]) * (v.box[3] - v.box[1]) / 10_000 for v in views]
        assert low - 0.005 < min(areas) < low + 0.02 and max(areas) > 0.95
        shares = {flip / 2: [v.flip for v in views], grey: [v.grey for v in views]}
        shares |= {blur: [v.sigma > 0 for v in views], solarise: [v.solarise for v in views]}
        for expected, happened in shares.items():
            assert abs(np.mean(happened) - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)
        largest = np.abs([[*(np.array(v.factors) - 1), v.turn] for v in views]).max(0)
        spread = np.array([blend, blend, saturation, hue])
        assert (largest <= spread + 1e-9).all() and (largest >= 0.98 * spread).all()


@pytest.mark.parametrize("preset", ["simclr", "moco-v3", "mae"])
def test_both_devices_give_the_same_views(preset: Preset) -> None:
    pictures = [picture(i, 50 + i, 60 - i) for i in range(6)]
    views = []
    for device in ("cpu", "accelerator"):
        pair = TwoViews(AugmentConfig(preset=preset, device=device), 32)  # type: ignore[arg-type]
        prepared = [pair.prepare(image, np.random.default_rng(i)) for i, image in enumerate(pictures)]
        views.append(torch.stack(pair.of(collate(prepared))).float())
    assert views[0].shape == (2, 6, 3, 32, 32)
    assert (views[0] - views[1]).abs().mean() < 1
    assert (views[0][0] - views[0][1]).abs().mean() > 10  # two views of a sample differ


def test_a_picture_travels_once() -> None:
    pair = TwoViews(AugmentConfig(device="accelerator", canvas=40), 32)
    prepared = pair.prepare(picture(0, 90, 30), np.random.default_rng(0))
    assert prepared["image"].shape == (3, 40, 40) and prepared["image"].dtype == np.uint8


def test_changes_replace_the_presets_numbers() -> None:
    pair = TwoViews(AugmentConfig(preset="byol", min_scale=0.5, blur=0.0, flip=False), 32)
    elsewhere = TwoViews(AugmentConfig(device="accelerator"), 32, "byol").distributions
    named = TwoViews(AugmentConfig(preset="byol"), 32).distributions
    assert [vars(part) for part in elsewhere] == [vars(part) for part in named]
    assert {(d.min_scale, d.jitter, d.blur, d.flip) for d in pair.distributions} == {(0.5, 0.5, 0.0, False)}
    assert [d.solarise for d in pair.distributions] == [0.0, 0.2]


def test_what_has_no_effect_is_refused() -> None:
    with pytest.raises(ValidationError, match="canvas 64 has no effect with device cpu"):
        AugmentConfig(canvas=64)
    with pytest.raises(ValidationError, match="preset"):
        AugmentConfig.model_validate({"preset": "dino"})
