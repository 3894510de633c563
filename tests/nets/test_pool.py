"""Means of parts against loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bigssl.nets.pool import means_of_parts

GENERATOR = torch.Generator().manual_seed(0)


def slow(tokens: Tensor, count: int, parts: int, mask: Tensor) -> Tensor:
    rows = []
    for part in range(parts):
        begin, end = part * count // parts, -(-(part + 1) * count // parts)
        chosen = tokens[begin:end][mask[begin:end]]
        rows.append(chosen.mean(0) if len(chosen) else torch.zeros(tokens.shape[1]))
    return torch.stack(rows)


@pytest.mark.parametrize("parts", [1, 6, 17, 30])
def test_means_of_parts_are_those_of_a_loop(parts: int) -> None:
    tokens, counts = torch.randn(3, 17, 4, generator=GENERATOR), torch.tensor([17, 5, 2])
    mask = torch.rand(3, 17, generator=GENERATOR) < 0.5
    everything = torch.ones_like(mask)
    for given, meant in ((None, everything), (mask, mask)):
        got = means_of_parts(tokens, counts, parts, given)
        for row in range(3):
            expected = slow(tokens[row], int(counts[row]), parts, meant[row])
            torch.testing.assert_close(got[row], expected, rtol=1e-4, atol=1e-5)


def test_without_a_mask_they_are_those_of_adaptive_pooling() -> None:
    tokens = torch.randn(2, 17, 4, generator=GENERATOR)
    expected = torch.nn.functional.adaptive_avg_pool1d(tokens.transpose(1, 2), 6).transpose(1, 2)
    torch.testing.assert_close(means_of_parts(tokens, torch.tensor([17, 17]), 6), expected, rtol=1e-4, atol=1e-5)
