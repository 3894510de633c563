"""Tasks over two random views of a picture and one backbone: their fields, and how a sample becomes its views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bigssl.data.kinds.views import AugmentConfig, TwoViews
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.towers import Tower
from bigssl.objectives.base import ObjectiveConfig
from bigssl.objectives.needs import Needs
from bigssl.objectives.seeing import picture_of


class ViewedConfig(ObjectiveConfig):
    """Fields that they all have."""

    backbone: str = "image"
    augment: AugmentConfig = AugmentConfig()


class OnViews:
    """Mixed into an `Objective`, which sets `backbone` and `views` when it is made."""

    takes: ClassVar[Mapping[str, Needs]] = {"backbone": Needs("image")}
    least: ClassVar[int] = 2  # of one sample BatchNorm makes a constant, and there is nothing to compare it with
    symmetric: ClassVar[bool] = True
    backbone: Tower
    views: TwoViews

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        return self.views.prepare(picture_of(sample, self.backbone), rng)

    def seen(self, batch: dict[str, Any]) -> Tensor:
        """Features [2B, dim], of the first views and then of the second ones: one batch of every BatchNorm."""
        return self.backbone.features({"image": torch.cat(self.views.of(batch))})
