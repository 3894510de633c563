"""Second moments of the global batch, both ways of computing them, with their gradients on one rank and two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bigssl import distributed
from bigssl.engine import zero
from bigssl.nets.embeddings.moments import centred, column_products


def rows(samples: int, width: int, seed: int) -> Tensor:
    drawn = torch.randn(samples, width, generator=torch.Generator().manual_seed(seed))
    return drawn @ (torch.eye(width) + 0.3) + 2


def slow(a: Tensor, b: Tensor) -> tuple[list[float], float]:
    """The diagonal of aᵀ b, both less their means, and the sum of squares beside it, number by number."""
    count, width = a.shape
    one, other = ([[x - sum(column) / count for x in column] for column in z.double().T.tolist()] for z in (a, b))
    matrix = [[sum(x * y for x, y in zip(u, v, strict=True)) for v in other] for u in one]
    beside = sum(matrix[i][j] ** 2 for i in range(width) for j in range(width) if i != j)
    return [matrix[i][i] for i in range(width)], beside


def value_and_gradients(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    diagonal, beside = column_products(centred(a), centred(b))
    (diagonal.sin().sum() + beside.sqrt()).backward()
    assert a.grad is not None and b.grad is not None
    return diagonal.detach(), beside.detach(), a.grad, b.grad


@pytest.mark.parametrize("shape", [(12, 5), (6, 11)], ids=["through-columns", "through-rows"])
def test_products_of_columns_are_their_definition(shape: tuple[int, int]) -> None:
    a, b = rows(*shape, seed=0), rows(*shape, seed=1)
    diagonal, beside, _, _ = value_and_gradients(a, b)
    wanted, squares = slow(a, b)
    assert diagonal.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert beside.item() == pytest.approx(squares, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert column_products(centred(a), centred(b))[1].item() == beside.item()


def on_ranks(pairs: list[tuple[Tensor, Tensor]]) -> Any:
    zero.start()
    shares = [[z.chunk(2)[distributed.rank()] for z in pair] for pair in pairs]
    return [value_and_gradients(*share) for share in shares]


@pytest.mark.distributed
def test_two_ranks_have_the_value_and_the_gradient_of_one(ranks: Any) -> None:
    """In the convention of `bigssl.distributed`: the mean over ranks of what each returns is the loss, and the mean
    over ranks of parameters' gradients its gradient, so that of a rank's own rows is as many times as large."""
    pairs = [(rows(*shape, seed=0), rows(*shape, seed=1)) for shape in ((12, 5), (6, 11))]
    found = ranks(on_ranks, 2, pairs)
    for number, pair in enumerate(pairs):
        diagonal, beside, *gradients = value_and_gradients(*pair)
        for rank in found:
            torch.testing.assert_close(rank[number][0], diagonal)
            torch.testing.assert_close(rank[number][1], beside)
        for which, gradient in enumerate(gradients, 2):
            together = torch.cat([rank[number][which] for rank in found]) / 2
            torch.testing.assert_close(together, gradient, rtol=1e-4, atol=1e-5)
