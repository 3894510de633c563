"""The health of features that are stored is that of features that are held."""

import math
from collections.abc import Callable

import pytest
import torch

from bigssl.nets.embeddings.health import rankme, uniformity, uniformity_of_even
from bigssl.transfer import collapse
from bigssl.transfer.collapse import feature_std, stored_health
from bigssl.transfer.matrix import Matrix


def gaussian(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


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
    assert found["span"] == pytest.approx((rankme(features) - 1) / (min(shape) - 1), rel=1e-5)
    some = features[:: -(-len(features) // collapse.SAMPLES)].double()
    assert found["uniformity"] == pytest.approx(uniformity(some @ some.T).item(), rel=1e-5)
    assert found["uniform"] == pytest.approx(found["uniformity"] / uniformity_of_even(shape[1]), rel=1e-6)
    assert found["spread"] == pytest.approx(found["std"] * shape[1] ** 0.5)
