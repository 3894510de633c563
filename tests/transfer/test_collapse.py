"""Closed forms of the collapse measures."""

import math
from collections.abc import Callable

import pytest
import torch

from bigssl.nets.embeddings.health import rankme
from bigssl.transfer.collapse import feature_std, stored_health
from bigssl.transfer.matrix import Matrix


def gaussian(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def test_rankme_of_identity_is_its_size() -> None:
    assert rankme(torch.eye(64)) == pytest.approx(64.0, rel=1e-4)


def test_rankme_of_rank_one_is_one() -> None:
    assert rankme(torch.outer(torch.arange(1.0, 101), torch.arange(1.0, 33))) == pytest.approx(1.0, abs=1e-3)


def test_rankme_of_gaussian() -> None:
    # Both Gram matrices are used: 1024 x 64 and its transpose have the same singular values.
    assert rankme(gaussian(1024, 64)) == pytest.approx(63.5, abs=0.2)
    assert rankme(gaussian(1024, 64).T) == pytest.approx(rankme(gaussian(1024, 64)), rel=1e-9)


def test_rankme_equals_definition_and_ignores_scale() -> None:
    x = gaussian(40, 12) * torch.logspace(0, -3, 12)
    p = torch.linalg.svdvals(x.double())
    p = p / p.sum() + 1e-7
    assert rankme(x) == pytest.approx(math.exp(-float((p * p.log()).sum())), rel=1e-6)
    assert rankme(100 * x) == pytest.approx(rankme(x), rel=1e-6)


def test_rankme_of_zeros_is_a_number() -> None:
    assert rankme(torch.zeros(10, 4)) == pytest.approx(1.0, abs=1e-3)


def test_std_of_random_directions() -> None:
    assert feature_std(gaussian(8192, 128)) == pytest.approx(1 / math.sqrt(128), rel=0.01)


def test_collapsed_features() -> None:
    collapsed = torch.arange(1.0, 9).expand(50, 8)
    assert feature_std(collapsed) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("shape", [(7000, 24), (24, 7000), (300, 5000)])
def test_of_stored_features_they_are_the_same(shape: tuple[int, int], stored: Callable[[torch.Tensor], Matrix]) -> None:
    features = gaussian(*shape) + 0.3
    found = stored_health(stored(features))
    assert found["std"] == pytest.approx(feature_std(features), rel=1e-5)
    assert found["rankme"] == pytest.approx(rankme(features), rel=1e-5)
