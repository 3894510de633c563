"""What is measured over all ranks is what one process would measure."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bigssl import distributed
from bigssl.engine import zero
from bigssl.transfer.collapse import feature_std


def rows(count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(count))


def slow_spread(z: Tensor) -> float:
    """Unit vectors, standard deviation of each dimension, mean, times √D: in loops."""
    units = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in z.double().tolist()]
    deviations = []
    for column in zip(*units, strict=True):
        mean = sum(column) / len(column)
        deviations.append(math.sqrt(sum((value - mean) ** 2 for value in column) / len(column)))
    return sum(deviations) / len(deviations) * math.sqrt(len(deviations))


@pytest.mark.parametrize("z", [rows(7, 3), rows(50, 11) + 4, rows(2, 5), 1e4 * rows(9, 4)])
def test_spread_is_its_definition(z: Tensor) -> None:
    assert distributed.spread(z).item() == pytest.approx(slow_spread(z), rel=1e-6)
    assert distributed.spread(z).item() == pytest.approx(feature_std(z) * z.shape[1] ** 0.5, rel=1e-5)


def test_spread_is_one_where_rows_point_everywhere_and_zero_where_all_are_alike() -> None:
    assert distributed.spread(rows(20_000, 32)).item() == pytest.approx(1, abs=0.01)
    one = rows(1, 64)
    assert distributed.spread(one.expand(50, 64)).item() < 1e-6
    assert distributed.spread(one * (1 + rows(50, 1).abs())).item() < 1e-6  # only the length differs
    assert distributed.spread(torch.zeros(5, 4)).item() == 0
    nearly = distributed.spread(one + 1e-4 * rows(50, 64)).item()
    assert nearly == pytest.approx(slow_spread(one + 1e-4 * rows(50, 64)), rel=1e-3)  # nothing cancels


def on_ranks(z: Tensor) -> float:
    zero.start()
    mine = z[:5] if distributed.rank() == 0 else z[5:]
    return distributed.spread(mine.requires_grad_()).item()


@pytest.mark.distributed
def test_spread_of_two_ranks_is_that_of_one(ranks: Any) -> None:
    z = rows(12, 6) + 1
    assert ranks(on_ranks, 2, z) == pytest.approx([slow_spread(z)] * 2, rel=1e-6)
