"""Measures of health: published definitions in loops, closed forms, and one number on two ranks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bigssl import distributed
from bigssl.engine import zero
from bigssl.nets.embeddings import health


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def healthy(samples: int, width: int, noise: float = 0.1) -> Tensor:
    """Two views [2, N, D] that differ by some noise."""
    return gaussian(samples, width) + noise * gaussian(2, samples, width, seed=1)


def collapsed(samples: int, width: int) -> Tensor:
    return gaussian(width).expand(2, samples, width)


def test_rankme_of_identity_is_its_size() -> None:
    assert health.rankme(torch.eye(64)) == pytest.approx(64.0, rel=1e-4)


def test_rankme_of_rank_one_is_one() -> None:
    assert health.rankme(torch.outer(torch.arange(1.0, 101), torch.arange(1.0, 33))) == pytest.approx(1.0, abs=1e-3)


def test_rankme_of_gaussian() -> None:
    # Both Gram matrices are used: 1024 x 64 and its transpose have the same singular values.
    assert health.rankme(gaussian(1024, 64)) == pytest.approx(63.5, abs=0.2)
    assert health.rankme(gaussian(1024, 64).T) == pytest.approx(health.rankme(gaussian(1024, 64)), rel=1e-9)


def test_rankme_equals_definition_and_ignores_scale() -> None:
    x = gaussian(40, 12) * torch.logspace(0, -3, 12)
    p = torch.linalg.svdvals(x.double())
    p = p / p.sum() + 1e-7
    assert health.rankme(x) == pytest.approx(math.exp(-float((p * p.log()).sum())), rel=1e-6)
    assert health.rankme(100 * x) == pytest.approx(health.rankme(x), rel=1e-6)


def test_rankme_of_zeros_is_a_number() -> None:
    assert health.rankme(torch.zeros(10, 4)) == pytest.approx(1.0, abs=1e-3)


def units(rows: Tensor) -> list[list[float]]:
    return [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows.double().tolist()]


def squared(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def test_alignment_and_uniformity_are_their_definitions() -> None:
    views = gaussian(3, 7, 5) + 1
    rows = [units(view) for view in views]
    pairs = list(itertools.permutations(range(3), 2))
    near = sum(squared(rows[a][n], rows[b][n]) for a, b in pairs for n in range(7)) / len(pairs) / 7
    others = [(a, b, n, m) for a in range(3) for b in range(3) for n, m in itertools.permutations(range(7), 2)]
    far = sum(squared(rows[a][n], rows[b][m]) for a, b, n, m in others) / len(others)
    found = health.alignment(views)
    assert [value.item() for value in found] == pytest.approx([near, max(0, 1 - near / far)], rel=1e-5)
    both = [math.exp(-2 * squared(one, other)) for one, other in itertools.permutations(rows[0], 2)]
    products = views[0].double() @ views[0].double().T
    assert health.uniformity(products).item() == pytest.approx(math.log(sum(both) / len(both)))


@pytest.mark.parametrize(("width", "known"), [(128, -3.94), (2, None), (7, None), (8192, -4.0)])
def test_the_uniformity_of_even_directions_is_its_closed_form(width: int, known: float | None) -> None:
    assert known is None or health.uniformity_of_even(width) == pytest.approx(known, abs=0.005)
    rows = gaussian(2000, width).double()
    assert health.uniformity(rows @ rows.T).item() == pytest.approx(health.uniformity_of_even(width), abs=0.01)


def slow_lidar(views: np.ndarray, delta: float = 1e-4) -> float:
    """Thilak et al. 2024, equations 2 to 6, sample by sample."""
    count, samples, width = views.shape
    views = views - views.mean((0, 1))
    views = views / math.sqrt((views**2).mean())
    between, within = np.zeros((width, width)), delta * np.eye(width)
    for n in range(samples):
        centre = views[:, n].mean(0)
        between += np.outer(centre, centre) / samples
        for v in range(count):
            within += np.outer(views[v, n] - centre, views[v, n] - centre) / (samples * count)
    values = np.linalg.eigvals(np.linalg.inv(within) @ between).real.clip(0)
    shares = values / values.sum() + 1e-7
    return math.exp(-sum(share * math.log(share) for share in shares))


def test_lidar_is_linear_discriminant_analysis_with_samples_as_classes() -> None:
    views = healthy(40, 6, 0.3) * torch.logspace(0, -2, 6) + 5
    assert health.lidar(views).item() == pytest.approx(slow_lidar(views.double().numpy()), rel=1e-6)
    assert health.lidar(1000 * views).item() == pytest.approx(health.lidar(views).item(), rel=1e-4)


def test_lidar_counts_the_directions_that_tell_samples_apart() -> None:
    """Of sixteen, four differ between samples; in the others views differ as much as samples do."""
    samples, rest = gaussian(400, 4), gaussian(2, 400, 12, seed=3)
    views = torch.cat([(samples + 0.01 * gaussian(2, 400, 4, seed=4)), 0.5 * rest], dim=2)
    assert health.lidar(views).item() == pytest.approx(4, abs=0.1) and health.rankme(views[0]) > 12
    assert health.lidar(torch.zeros(2, 40, 6)).item() == pytest.approx(1, abs=1e-3)
    assert 50 < health.lidar(healthy(256, 2048)).item() <= 64.1, "of wide ones, a sketch"


def test_every_measure_is_near_one_where_healthy_and_near_zero_where_collapsed() -> None:
    scale = ("span", "discerned", "aligned", "uniform", "spread")
    good = health.of_views({"z": healthy(300, 64, 0.05)}, spectra=True)
    bad = health.of_views({"z": collapsed(300, 64)}, spectra=True)
    assert all(0.7 < good[f"z/{name}"] <= 1.01 for name in scale), good
    assert all(0 <= bad[f"z/{name}"] < 1e-3 for name in scale), bad
    assert (bad["z/rankme"].item(), bad["z/lidar"].item()) == pytest.approx((1, 1), abs=1e-3)
    assert (bad["z/alignment"].item(), bad["z/uniformity"].item()) == pytest.approx((0, 0), abs=1e-5)
    cheap = {"z/alignment", "z/aligned", "z/uniformity", "z/uniform", "z/spread"}
    assert set(health.of_views({"z": healthy(8, 4)}, spectra=False)) == cheap < set(good)


def test_dimensions_that_say_the_same_have_no_span_though_samples_differ() -> None:
    line = gaussian(300, 1) @ torch.ones(1, 64) + 1e-4 * gaussian(2, 300, 64, seed=1)
    found = health.of_views({"z": line}, spectra=True)
    assert found["z/spread"] > 0.9 and found["z/span"] < 0.05 and found["z/uniform"] < 0.3


def test_what_is_no_number_and_a_single_sample_break_nothing() -> None:
    broken = healthy(20, 8)
    broken[0, 3] = float("nan")
    broken[1, 4, 2] = float("inf")
    assert all(value.isfinite() for value in health.of_views({"z": broken}, spectra=True).values())
    assert health.of_views({"z": healthy(1, 8)}, spectra=True) == {}


def on_ranks(views: Tensor) -> dict[str, float]:
    zero.start()
    mine = views.chunk(2, dim=1)[distributed.rank()].requires_grad_()
    return {name: value.item() for name, value in health.of_views({"z": mine}, spectra=True).items()}


@pytest.mark.distributed
def test_two_ranks_find_what_one_finds(ranks: Any) -> None:
    views = healthy(24, 6)
    whole = {name: value.item() for name, value in health.of_views({"z": views}, spectra=True).items()}
    assert ranks(on_ranks, 2, views) == [pytest.approx(whole, rel=1e-5)] * 2
