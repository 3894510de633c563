"""Which random views which paper takes, by name, and the two views of a sample on either device.

simclr   Chen et al. 2020, arXiv 2002.05709, appendix A: strength 1, blur for half of the views
moco-v2  Chen et al. 2020, arXiv 2003.04297: crops from a fifth of the area, strength 1/2
byol     Grill et al. 2020, arXiv 2006.07733, table 6: the first view always blurred, the second rarely but solarised
moco-v3  Chen et al. 2021, arXiv 2104.02057, appendix: BYOL's
mae      He et al. 2022, arXiv 2111.06377: crops from a fifth of the area and flips, nothing else
lejepa   Balestriero and LeCun 2025, arXiv 2511.08544: crops from three tenths of the area, BYOL's colours, both views
         alike: blur for half of them, a fifth solarised
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from bigssl.config.recipe import Section
from bigssl.data.kinds.augment import SimClrAugment
from bigssl.data.kinds.augment_device import canvas_side, on_canvas, placed, render_batch

Preset = Literal["simclr", "moco-v2", "moco-v3", "byol", "mae", "lejepa"]

_SIMCLR = {"min_scale": 0.08}
_MOCO_V2 = {"min_scale": 0.2, "jitter": 0.5}
_BYOL = {"min_scale": 0.08, "jitter": 0.5, "saturation": 0.4}
_BYOL_PAIR = (_BYOL | {"blur": 1.0}, _BYOL | {"blur": 0.1, "solarise": 0.2})
_LEJEPA = {"min_scale": 0.3, "jitter": 0.5, "saturation": 0.4, "solarise": 0.2}
_MAE = {"min_scale": 0.2, "jitter": 0.0, "grey": 0.0, "blur": 0.0}
PRESETS: dict[Preset, tuple[dict[str, float], dict[str, float]]] = {
    "simclr": (_SIMCLR, _SIMCLR),
    "moco-v2": (_MOCO_V2, _MOCO_V2),
    "moco-v3": _BYOL_PAIR,
    "byol": _BYOL_PAIR,
    "mae": (_MAE, _MAE),
    "lejepa": (_LEJEPA, _LEJEPA),
}
_CHANGES = {"min_scale", "flip", "jitter", "grey", "blur", "solarise"}


class AugmentConfig(Section):
    """Random views: whose distribution, what is otherwise in both views, and who renders them."""

    preset: Preset | None = Field(
        None, description="the paper whose views are taken, see bigssl/data/kinds/views.py; default the task's own"
    )
    min_scale: float | None = Field(
        None, gt=0, le=1, description="smallest share of the picture that a view keeps; default the preset's, as below"
    )
    flip: bool | None = Field(None, description="mirror half of the views")
    jitter: float | None = Field(None, ge=0, description="strength of the colour distortion, the paper's s; 0: none")
    grey: float | None = Field(None, ge=0, le=1, description="probability of no colour")
    blur: float | None = Field(None, ge=0, le=1, description="probability of blur")
    solarise: float | None = Field(None, ge=0, le=1, description="probability that bright values are inverted")
    device: Literal["cpu", "accelerator"] = Field(
        "cpu", description="cpu: by the loader's workers; accelerator: batched, on the device that trains"
    )
    canvas: int | None = Field(
        None, ge=1, description="accelerator: side to which larger images are reduced; default 9/4 of the view's"
    )

    @model_validator(mode="after")
    def _canvas_is_used(self) -> AugmentConfig:
        if self.device == "cpu":
            self.refuse_idle("with device cpu", "canvas")
        return self


class TwoViews:
    """Two views of each sample, rendered where `config` says. The numbers of a view do not depend on where. Raises
    ConfigError where `config` has too small a canvas.

    size: side of a view in pixels. own: the preset of the task, where `config` names none.
    """

    def __init__(self, config: AugmentConfig, size: int, own: Preset = "simclr") -> None:
        given = config.model_dump(include=_CHANGES, exclude_none=True)
        first, second = PRESETS[config.preset or own]
        self.distributions = [SimClrAugment(size, **(part | given)) for part in (first, second)]
        self.size, self.canvas = size, canvas_side(config.canvas, size, "objective.augment")
        self.batched = config.device == "accelerator"

    def prepare(self, pixels: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """uint8 [H, W, C] -> what `of` needs of it: two views, or one canvas and the numbers of two views."""
        if not self.batched:
            first, second = (draw(pixels, rng) for draw in self.distributions)
            return {"view1": first, "view2": second}
        height, width = pixels.shape[:2]
        views = [distribution.draw(width, height, rng) for distribution in self.distributions]
        canvas, scale = on_canvas(pixels, self.canvas)
        return {"image": canvas, **{f"view{n}": placed(v, width, height, scale) for n, v in enumerate(views, 1)}}

    def of(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Collated samples -> both views, uint8 [B, C, size, size] each, on the device of the batch."""
        if not self.batched:
            return batch["view1"], batch["view2"]
        first, second = (
            render_batch(batch["image"], batch[name], self.size, part.largest_sigma)
            for name, part in zip(("view1", "view2"), self.distributions, strict=True)
        )
        return first, second
