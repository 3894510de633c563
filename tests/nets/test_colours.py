"""Lightness and colour of sRGB, the bins of its ab plane, soft encoding and rebalancing (Zhang et al. 2016)."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from bigssl.nets.remaking.colorization import ColorizationRemaker, ColourBins, colour_grid
from bigssl.nets.remaking.lab import lab_of, rgb_of

PAPER = {
    -90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100), -30: (-50, 100),
    -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90), 30: (-90, 90), 40: (-100, 90),
    50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70), 90: (-110, 70), 100: (-90, 0),
}  # fmt: skip
"""b from and to, by a, of the 313 bins of the paper."""


def colour(red: int, green: int, blue: int) -> Tensor:
    return torch.tensor([red, green, blue], dtype=torch.uint8).view(3, 1, 1)


def slow_lab(red: float, green: float, blue: float) -> tuple[float, float, float]:
    """Of values in 0..1: IEC 61966-2-1 and CIE 15, step by step."""

    def linear(value: float) -> float:
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    def root(ratio: float) -> float:
        return ratio ** (1 / 3) if ratio > (6 / 29) ** 3 else ratio * (29 / 6) ** 2 / 3 + 4 / 29

    r, g, b = linear(red), linear(green), linear(blue)
    x = root((0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047)
    y = root(0.2126729 * r + 0.7151522 * g + 0.0721750 * b)
    z = root((0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def test_lab_has_the_known_values_and_those_of_two_other_implementations() -> None:
    known = {
        (255, 255, 255): (100, 0, 0), (0, 0, 0): (0, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.73, -86.18, 83.18), (0, 0, 255): (32.30, 79.19, -107.86), (128, 128, 128): (53.59, 0, 0),
    }  # fmt: skip
    for rgb, lab in known.items():
        np.testing.assert_allclose(lab_of(colour(*rgb)).flatten(), lab, atol=0.01)
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    found = lab_of(torch.from_numpy(picture.transpose(2, 0, 1))).movedim(0, -1).numpy()
    rough = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)  # by interpolation in a table
    np.testing.assert_allclose(found, rough, atol=0.5)
    assert np.abs(found - rough).mean() < 0.1
    for row, column in itertools.product(range(0, 40, 8), range(0, 50, 8)):
        np.testing.assert_allclose(found[row, column], slow_lab(*(picture[row, column] / 255)), atol=2e-3)


def test_every_colour_comes_back_and_greys_have_none() -> None:
    cube = torch.cartesian_prod(*[torch.arange(0, 256, 5)] * 3).T.to(torch.uint8).view(3, -1, 52)
    assert torch.equal(rgb_of(lab_of(cube)), cube)
    greys = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert lab_of(greys)[1:].abs().max() < 1e-4
    beyond = torch.tensor([50.0, 120.0, 0.0]).view(3, 1, 1)
    assert rgb_of(beyond)[:2].flatten().tolist() == [255, 0]


def fast_ab(rgb: np.ndarray) -> np.ndarray:
    """float64 [N, 2] of [N, 3] bytes, in numpy."""
    coded = rgb / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    white = np.array([[0.4124564, 0.2126729, 0.0193339], [0.3575761, 0.7151522, 0.1191920],
                      [0.1804375, 0.0721750, 0.9503041]])  # fmt: skip
    ratio = linear @ white / white.sum(0)
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29).T
    return np.stack([500 * (x - y), 200 * (y - z)], 1)


def whole_cube(levels: np.ndarray) -> np.ndarray:
    return fast_ab(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3))


def surface(levels: np.ndarray) -> np.ndarray:
    one, other = (each.ravel() for each in np.meshgrid(levels, levels))
    return np.concatenate([fast_ab(np.insert(np.stack([one, other], 1), axis, value, axis=1))
                           for axis in range(3) for value in (0, 255)])  # fmt: skip


def test_bins_are_those_of_the_paper_that_a_colour_can_lie_at() -> None:
    """From the whole cube of colours, every fifth level of each, and the surface at every level: 309 of the 313. The
    other four stand at the rim: no cell around them holds a colour, none is nearer than 13."""
    paper = {(a, b) for a, (low, high) in PAPER.items() for b in range(low, high + 1, 10)}
    assert len(paper) == 313
    ab = np.concatenate([whole_cube(np.arange(0, 256, 5)), surface(np.arange(256))])
    cells = {tuple(cell) for cell in np.unique(np.floor(ab / 10).astype(int), axis=0)}
    corners = {(int(a + x) * 10, int(b + y) * 10) for a, b in cells for x, y in itertools.product((0, 1), repeat=2)}
    assert {tuple(each) for each in colour_grid(10).tolist()} == corners
    assert paper - corners == {(40, 90), (100, -90), (100, -10), (100, 0)} and corners < paper
    assert all(np.hypot(*(ab - each).T).min() > 13 for each in paper - corners)


def test_a_colour_is_shared_out_among_its_five_nearest_bins() -> None:
    """In loops: Gaussian in the distance, of deviation 5; at a bin, next to all is its own."""
    bins = ColourBins(10)
    centres = colour_grid(10)
    colours = torch.tensor([[0, 0], [13, -28], [-86, 83], [98, -61], [-128, 127], [4, 5]], dtype=torch.int8)
    near, shares = bins(colours.view(6, 2, 1, 1))
    for ab, where, share in zip(colours.tolist(), near.flatten(1).tolist(), shares.flatten(1).tolist(), strict=True):
        squares = sorted(((centre - ab) ** 2).sum() for centre in centres)[:5]
        assert [((centres[each] - ab) ** 2).sum() for each in where] == squares and len(set(where)) == 5
        weights = [math.exp((squares[0] - each) / 50) for each in squares]
        np.testing.assert_allclose(share, np.array(weights) / sum(weights), rtol=1e-5)
    assert centres[near[0, 0, 0, 0]].tolist() == [0, 0]
    assert shares[0, 0, 0, 0].item() == pytest.approx(1 / (1 + 4 * math.exp(-2)))


def test_rare_colours_weigh_more_and_all_of_them_one_on_average() -> None:
    """In loops: (1 − λ) p̃ + λ / Q, with p̃ blurred by a Gaussian over ab; nothing seen, or λ = 1: all weigh 1."""
    bins, centres = ColourBins(20), colour_grid(20)
    count = len(centres)
    counts = torch.zeros(count, dtype=torch.int64)
    counts[5], counts[6], counts[40] = 900, 90, 10
    p = [(n + 1 / count) / 1001 for n in counts.tolist()]
    kernel = [[math.exp(-((one - other) ** 2).sum() / 50) for other in centres] for one in centres]
    smooth = [sum(kernel[q][k] * p[k] / sum(row[k] for row in kernel) for k in range(count)) for q in range(count)]
    raised = [1 / (0.5 * each + 0.5 / count) for each in smooth]
    wanted = np.array(raised) / sum(a * b for a, b in zip(p, raised, strict=True))
    found = bins.weights(counts, 0.5)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4)
    assert found[5] < found[6] < found[40] < found[20]
    for uniform, seen in ((1.0, counts), (0.5, counts * 0)):
        torch.testing.assert_close(bins.weights(seen, uniform), torch.ones(count), rtol=0.2, atol=0)
    torch.testing.assert_close(bins.weights(counts, 1.0), torch.ones(count))


def test_the_annealed_mean_lies_between_the_mean_and_the_likeliest_bin() -> None:
    """softmax(logits / T) over the centres, T = .38, in loops."""
    painter = ColorizationRemaker(dim=4, size=8, width=8, bin=20)
    logits = torch.randn(1, len(colour_grid(20)), 2, 2) * 3
    found = painter.colours(logits)
    for row, column in itertools.product(range(2), repeat=2):
        raised = [math.exp(each / 0.38) for each in logits[0, :, row, column].tolist()]
        wanted = sum(r * centre for r, centre in zip(raised, colour_grid(20), strict=True)) / sum(raised)
        np.testing.assert_allclose(found[0, :, row, column].numpy(), wanted, rtol=1e-4, atol=1e-3)
