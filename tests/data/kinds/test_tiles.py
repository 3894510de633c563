"""Tiles of a picture: where they are cut, how they are moved, and permutations that are far from each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bigssl.data.errors import DataError
from bigssl.data.kinds.tiles import TileGrid, drop_colours, far_permutations, random_square, resized


def numbered(height: int, width: int) -> np.ndarray:
    """A picture whose pixels say where they are: row, column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows * 0], -1).astype(np.uint8)


def test_a_grid_is_as_large_as_its_tiles_gaps_and_jitter_and_the_largest_within_a_picture_is_found() -> None:
    """96 pixels, a gap of half of that and 7 pixels either way, as Doersch et al. have them."""
    paper = TileGrid.of_shares(3, 96, 0.5, 7 / 96)
    assert paper == TileGrid(3, 96, 48, 7) and paper.whole == 3 * 96 + 2 * 48 + 2 * 7 and paper.nearest == 34
    for whole, gap, jitter in itertools.product((13, 32, 64, 224), (0.0, 0.25, 0.5), (0.0, 7 / 96)):
        found = TileGrid.within(whole, 3, gap, jitter)
        assert found.whole <= whole < TileGrid.of_shares(3, found.side + 1, gap, jitter).whole
    assert TileGrid.within(2, 3, 0, 0).side == 0


def test_a_tile_lies_at_its_place_moved_evenly_and_within_bounds() -> None:
    """Every offset of -2 to 2 in each direction as often, independently of the other's; nothing beyond the square."""
    grid, rng = TileGrid(3, 6, 4, 2), np.random.default_rng(0)
    square = numbered(grid.whole, grid.whole)
    for place in range(9):
        offsets = []
        for _ in range(400):
            tile = grid.cut(square, place, rng)
            assert tile.shape == (3, 6, 6) and (np.diff(tile[0], axis=0) == 1).all()
            offsets.append(tile[:2, 0, 0].astype(int) - (np.array(divmod(place, 3)) * 10 + 2))
        counts = np.zeros((5, 5))
        for down, right in offsets:
            counts[down + 2, right + 2] += 1
        assert counts.min() > 0 and ((counts - 16) ** 2 / 16).sum() < 51.2  # chi² of 24 degrees, .999
    assert np.array_equal(TileGrid(3, 6, 4, 0).cut(square, 5, rng)[:, 0, 0], [10, 20, 0])


def test_squares_have_areas_evenly_from_the_smallest_to_the_whole_and_lie_anywhere() -> None:
    rng, picture = np.random.default_rng(0), numbered(60, 100)
    squares = [random_square(picture, 0.25, rng) for _ in range(2000)]
    sides = np.array([square.shape[:2] for square in squares])
    assert (sides[:, 0] == sides[:, 1]).all()
    areas = (sides[:, 0] / 60) ** 2
    deciles = np.quantile(areas, np.linspace(0.1, 0.9, 9))
    assert np.allclose(deciles, 0.25 + 0.75 * np.linspace(0.1, 0.9, 9), atol=0.05)
    free = np.array([[square[0, 0, 0], square[0, 0, 1]] for square in squares]) / (np.array([60, 100]) - sides + 1e-9)
    assert 0.45 < free[:, 1].mean() < 0.55 and free[:, 1].min() < 0.02 and free[:, 1].max() > 0.98
    assert random_square(picture, 0.25, rng, least=59).shape[0] >= 59


def test_a_small_picture_is_enlarged_and_one_with_nothing_in_its_tiles_refused() -> None:
    grid, rng = TileGrid(3, 16, 8, 1), np.random.default_rng(0)  # 66 pixels, of which a tile is a fourth
    assert grid.square(numbered(17, 40), 0.01, rng).shape == (66, 66, 3)
    with pytest.raises(DataError, match="40×16 pixels: a grid of 3×3 tiles needs 17 or more a side"):
        grid.square(numbered(16, 40), 1.0, rng)
    assert grid.square(numbered(17, 40)[..., :1], 1.0, rng).shape == (66, 66, 1)


def test_resizing_treats_both_directions_alike() -> None:
    """Of a turned picture, the turned one, to a level: a network could tell turns by any difference."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    for side in (17, 50, 83):
        whole, turned = resized(noise, side), resized(np.rot90(noise), side)
        assert np.abs(np.rot90(whole).astype(int) - turned).max() <= 1


def test_dropped_colours_are_noise_of_a_hundredth_around_mid_grey() -> None:
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (3, 64, 64), dtype=np.uint8)
    kept = np.zeros(3)
    for _ in range(300):
        dropped = drop_colours(tile, rng)
        (same,) = np.flatnonzero((dropped == tile).all((1, 2)))
        kept[same] += 1
        others = np.delete(dropped, same, 0).astype(float)
        assert abs(others.mean() - 127.5) < 0.1
        assert others.std() == pytest.approx(np.hypot(0.01 * tile[same].std(), 12**-0.5), rel=0.1)  # and of rounding
    assert kept.min() > 70  # a hundred each


def slow_choice(count: int, length: int) -> list[tuple[int, ...]]:
    """The same greedy choice, in loops."""
    every = list(itertools.permutations(range(length)))
    chosen = [every[0]]
    while len(chosen) < count:
        best, at = (-1, -1), ()
        for one in every:
            distances = [sum(a != b for a, b in zip(one, other, strict=True)) for other in chosen]
            if (min(distances), sum(distances)) > best and one not in chosen:
                best, at = (min(distances), sum(distances)), one
        chosen.append(at)
    return chosen


def test_permutations_are_those_of_the_greedy_choice() -> None:
    assert far_permutations(24, 4).tolist() == [list(each) for each in slow_choice(24, 4)]
    assert far_permutations(20, 5).tolist() == [list(each) for each in slow_choice(20, 5)]


@pytest.mark.parametrize(("count", "least", "mean"), [(9, 8, 8.9), (64, 7, 8.1), (100, 6, 8.07), (300, 5, 8.0)])
def test_permutations_of_nine_tiles_are_far_from_each_other(count: int, least: int, mean: float) -> None:
    """The paper's, which look at the sum alone, differ in 2 places at least (of 100: mean 8.08)."""
    found = far_permutations(count, 9)
    assert (np.sort(found, 1) == np.arange(9)).all()
    distances = (found[:, None] != found[None]).sum(-1)[np.triu_indices(count, 1)]
    assert distances.min() >= least and distances.mean() > mean
