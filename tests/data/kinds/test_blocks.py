"""Masks of patches: as many as asked, in blocks, anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from bigssl.data.kinds.blocks import blocks


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (14, 14), (1, 7), (6, 3)])
def test_exactly_as_many_patches_are_hidden_as_asked(rows: int, columns: int) -> None:
    for count in range(rows * columns + 1):
        hidden = blocks(rows, columns, count, np.random.default_rng(count))
        assert hidden.shape == (rows, columns) and hidden.dtype == bool and hidden.sum() == count


def test_they_lie_in_blocks_and_anywhere() -> None:
    """Neighbours share their fate far more often than chance has it, and no place is spared."""
    rng = np.random.default_rng(0)
    masks = np.stack([blocks(14, 14, 59, rng) for _ in range(400)])  # 30 %
    share = masks.mean()
    together = (masks[:, :, 1:] & masks[:, :, :-1]).mean() / share
    assert share == pytest.approx(59 / 196) and together > 2.2 * share  # by chance: `share`
    places = masks.mean(0)
    assert places.min() > 0.02 and places.max() < 0.6  # blocks reach corners more rarely
    assert (blocks(14, 14, 59, np.random.default_rng(3)) == blocks(14, 14, 59, np.random.default_rng(3))).all()
