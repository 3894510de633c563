"""The picture of a sample as a backbone takes it, before views are drawn of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.config.errors import ConfigError
from bigssl.data.kinds import decode
from bigssl.data.kinds.multicrop import MultiCrop, MultiCropConfig, Scheme, usual_small_size
from bigssl.data.sample import Sample
from bigssl.nets.modality import MODALITIES
from bigssl.nets.modality.kinds import ONE_SIDE
from bigssl.nets.towers import Tower
from bigssl.nets.weightless import feature_size


def picture_of(sample: Sample, tower: Tower, size: int | None = None) -> np.ndarray:
    """uint8 [H, W, C], upright, transparent ones on white; C is 3, or 1 where the backbone takes one channel. Grey
    ones of more than 8 bits are seen through its window.

    Args:
        size: shorter side that is needed at least: a JPEG may then be decoded at a half or a quarter; default twice
            that of the backbone.

    Raises:
        DataError: there is no picture, or it cannot be decoded.
    """
    data = decode.field(sample, decode.IMAGES)
    mode = "L" if tower.channels == 1 else "RGB"
    return decode.picture_array(data, size=size or 2 * tower.size, mode=mode, window=tower.window)


def crops_for(tower: Tower, config: MultiCropConfig, own: Scheme) -> MultiCrop:
    """The crops of a task's pictures, small ones in whole patches of its backbone.

    own: the scheme of the task, where `config` names none.
    Raises:
        ConfigError: the backbone takes no small crops, or `config` asks for what cannot be.
    """
    kind = tower.model.config.model_type
    if config.small and kind in ONE_SIDE:
        raise ConfigError(
            f"objective.crops.small: value {config.small}, but the backbone is of type {kind}, which takes pictures of "
            f"its own side only; allowed: 0"
        )
    patch = getattr(tower.model.config, "patch_size", 1)
    patch = patch if isinstance(patch, int) else 1
    crops = MultiCrop(config, tower.size, patch, own)
    if config.small and config.small_size is not None:
        _refuse_tiny(tower, config.small_size, patch)
    return crops


def _refuse_tiny(tower: Tower, side: int, patch: int) -> None:
    """A small crop shows something where it has a place of the network's last map, or is no smaller than usual."""
    place = round(tower.size / math.isqrt(places_of(tower, tower.size) or 1))
    least = min(place, usual_small_size(tower.size, patch))
    if side < least:
        raise ConfigError(
            f"objective.crops.small_size: value {side}, but a place of the backbone's last map covers {place} pixels a "
            f"side: of so few, its last layers would see nothing but padding; allowed: >= {least}"
        )


def places_of(tower: Tower, side: int) -> int:
    """Hidden states of a picture of `side` pixels, on shapes; 0 where the network takes none of them."""
    row = MODALITIES["image"]

    def inputs() -> dict[str, Any]:
        return {row.batch: torch.zeros(2, tower.channels, side, side, dtype=torch.uint8)}

    def places(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
        hidden = row.hidden(model, batch)
        return hidden.new_empty(2, hidden.shape[1])

    if side != tower.size and tower.model.config.model_type in ONE_SIDE:
        return 0
    try:
        return feature_size("", tower.model.config, inputs, places, lambda model: None)
    except ConfigError:
        return 0
