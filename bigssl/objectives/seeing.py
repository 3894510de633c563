"""The picture of a sample as a backbone takes it, before views are drawn of it."""

from __future__ import annotations

import numpy as np

from bigssl.config.errors import ConfigError
from bigssl.data.kinds import decode
from bigssl.data.kinds.multicrop import MultiCrop, MultiCropConfig, Scheme
from bigssl.data.sample import Sample
from bigssl.nets.modality.kinds import ONE_SIDE
from bigssl.nets.towers import Tower


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
    return MultiCrop(config, tower.size, patch if isinstance(patch, int) else 1, own)
