"""The picture of a sample as a backbone takes it, before views are drawn of it."""

from __future__ import annotations

import numpy as np

from bigssl.data.kinds import decode
from bigssl.data.sample import Sample
from bigssl.nets.towers import Tower


def picture_of(sample: Sample, tower: Tower, size: int | None = None) -> np.ndarray:
    """uint8 [H, W, 3], upright, transparent ones on white.

    Args:
        size: shorter side that is needed at least: a JPEG may then be decoded at a half or a quarter; default twice
            that of the backbone.

    Raises:
        DataError: there is no picture, or it cannot be decoded.
    """
    return decode.picture_array(decode.field(sample, decode.IMAGES), size=size or 2 * tower.size)
