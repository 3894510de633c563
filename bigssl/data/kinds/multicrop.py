"""Multi-crop: two large crops of a picture and some small ones, which a network sees at a lower resolution
(Caron et al. 2020, arXiv 2006.09882; 2021, arXiv 2104.14294).

    picture ─┬─ crop 1, crop 2: more than `split` of the area    [2B, 3, size, size]       one pass of a network
             └─ n small crops: from `smallest` to `split` of it  [nB, 3, small, small]     and another

dino   2104.14294, section 3.2 and its code: BYOL's colours; crop 1 always blurred, crop 2 rarely but solarised, small
       ones half of the time
swav   2006.09882, appendix A: SimCLR's colours and blur for all crops

Small crops are blurred by as many pixels as large ones, .1 to 2 beside large ones of 224, as in both papers' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from bigssl.config.errors import ConfigError
from bigssl.config.section import Section
from bigssl.data.kinds.augment import SimClrAugment
from bigssl.data.kinds.augment_device import canvas_side, on_canvas, placed, render_batch

Scheme = Literal["dino", "swav"]


class _Scheme(NamedTuple):
    """Colours of each large crop and of small ones as fields of `SimClrAugment`, and the shares of the area."""

    large: tuple[dict[str, float], dict[str, float]]
    small: dict[str, float]
    split: float
    smallest: float


_HALF: dict[str, float] = {"jitter": 0.5, "saturation": 0.4}
SCHEMES: dict[Scheme, _Scheme] = {
    "dino": _Scheme((_HALF | {"blur": 1.0}, _HALF | {"blur": 0.1, "solarise": 0.2}), _HALF, 0.4, 0.05),
    "swav": _Scheme(({}, {}), {}, 0.14, 0.05),
}


class MultiCropConfig(Section):
    """Random crops: how many, how large, whose colours, and who renders them."""

    scheme: Scheme | None = Field(None, description="the paper whose colours and shares are taken; default the task's")
    small: int = Field(6, ge=0, description="small crops beside the two large ones")
    small_size: int | None = Field(
        None, ge=1, description="side of small crops in pixels; default 96/224 of the backbone's, in whole patches"
    )
    split: float | None = Field(
        None, gt=0, le=1, description="share of the area that large crops keep at least and small ones at most"
    )
    smallest: float | None = Field(None, gt=0, le=1, description="share that small crops keep at least")
    jitter: float | None = Field(None, ge=0, description="strength of the colour distortion; default the paper's")
    blur: float | None = Field(None, ge=0, le=1, description="probability of blur in each crop; default the paper's")
    device: Literal["cpu", "accelerator"] = Field(
        "cpu", description="cpu: by the loader's workers; accelerator: batched, on the device that trains"
    )
    canvas: int | None = Field(
        None, ge=1, description="accelerator: side to which larger images are reduced; default 9/4 of the view's"
    )

    @model_validator(mode="after")
    def _has_an_effect(self) -> MultiCropConfig:
        if self.device == "cpu":
            self.refuse_idle("with device cpu", "canvas")
        if self.small == 0:
            self.refuse_idle("with small 0", "small_size", "smallest")
        return self


class MultiCrop:
    """The crops of each sample, rendered where `config` says; their numbers do not depend on where.

    Attributes:
        small: how many small crops there are.
        small_size: their side in pixels.
        large, little: the distributions of the two large crops, and that of small ones.
    """

    def __init__(self, config: MultiCropConfig, size: int, patch: int, own: Scheme) -> None:
        """size: side of large crops; patch: of what divides the side of small ones; own: where `config` has no scheme.

        Raises:
            ConfigError: shares or sides that exclude each other.
        """
        scheme = SCHEMES[config.scheme or own]
        split, smallest = config.split or scheme.split, config.smallest or scheme.smallest
        self.small = config.small
        self.small_size = config.small_size or usual_small_size(size, patch)
        if self.small:
            _check(self.small_size, size, patch, split, smallest)
        given = {name: value for name in ("jitter", "blur") if (value := getattr(config, name)) is not None}
        self.large = [SimClrAugment(size, **{"min_scale": split, **colours, **given}) for colours in scheme.large]
        self.little = SimClrAugment(
            self.small_size, blur_side=size, **{"min_scale": smallest, "max_scale": split, **scheme.small, **given}
        )
        self.size, self.canvas = size, canvas_side(config.canvas, size, "objective.crops")
        self.batched = config.device == "accelerator"

    def prepare(self, pixels: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """uint8 [H, W, C] -> what `of` needs of it: view1, view2 and small [n, C, s, s], or one canvas and numbers."""
        distributions = [*self.large, *[self.little] * self.small]
        if not self.batched:
            first, second, *rest = (draw(pixels, rng) for draw in distributions)
            return {"view1": first, "view2": second} | ({"small": np.stack(rest)} if rest else {})
        height, width = pixels.shape[:2]
        views = [each.draw(width, height, rng) for each in distributions]
        canvas, scale = on_canvas(pixels, self.canvas)
        one, two, *small = (placed(view, width, height, scale) for view in views)
        return {"image": canvas, "view1": one, "view2": two} | ({"small": _stacked(small)} if small else {})

    def of(self, batch: dict[str, Any]) -> list[Tensor]:
        """Collated samples -> uint8 [2B, C, size, size] and, where there are small crops, [nB, C, s, s]: first crops of
        all samples, then second ones, ..."""
        if not self.batched:
            large = torch.cat([batch["view1"], batch["view2"]])
            return [large, batch["small"].transpose(0, 1).flatten(0, 1)] if self.small else [large]
        large = torch.cat([
            render_batch(batch["image"], batch[name], each.size, each.largest_sigma)
            for name, each in zip(("view1", "view2"), self.large, strict=True)
        ])  # fmt: skip
        if not self.small:
            return [large]
        numbers = [{name: value[:, n] for name, value in batch["small"].items()} for n in range(self.small)]
        little = [render_batch(batch["image"], each, self.small_size, self.little.largest_sigma) for each in numbers]
        return [large, torch.cat(little)]


def usual_small_size(size: int, patch: int) -> int:
    """Side of small crops beside large ones of `size` pixels, as the papers' 96 of 224, in whole patches."""
    return max(1, round(96 / 224 * size / patch)) * patch


def _stacked(numbers: Sequence[dict[str, object]]) -> dict[str, np.ndarray]:
    """The numbers of n views, by name: [n, ...]; floats as float32, which is what they become on a device."""
    found = {name: np.stack([np.asarray(each[name]) for each in numbers]) for name in numbers[0]}
    return {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in found.items()}


def _check(small: int, size: int, patch: int, split: float, smallest: float) -> None:
    if small % patch or small > size:
        raise ConfigError(
            f"objective.crops.small_size: value {small}; allowed: a multiple of {patch}, the backbone's patch, up to "
            f"{size}, its size"
        )
    if smallest > split:
        raise ConfigError(
            f"objective.crops.smallest: value {smallest}; allowed: <= {split}, which is objective.crops.split, the "
            f"share that small crops keep at most"
        )
