"""Noise by sample: the numbers of the formula, fair, independent, and the same for any grouping of the samples."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from bigssl.data.order import rng
from bigssl.engine import zero
from bigssl.nets.chance import noise
from bigssl.nets.chance.seeds import another, views

SEEDS = torch.from_numpy(rng.seeds(np.arange(64), 0, "images"))
KINDS: dict[str, Callable[[Tensor, str, int], Tensor]] = {
    "uniform": noise.uniform, "gaussian": noise.gaussian, "gumbel": noise.gumbel, "exponential": noise.exponential,
    "orders": noise.orders,
}  # fmt: skip
M = 2**32


def mixed(x: int) -> int:
    """MurmurHash3's finaliser as Appleby wrote it, in whole numbers."""
    x ^= x >> 16
    x = x * 0x85EBCA6B % M
    x ^= x >> 13
    x = x * 0xC2B2AE35 % M
    return x ^ x >> 16


def bits(seed: int, use: str, element: int) -> int:
    """31 bits of one element, without a tensor."""
    number = zlib.crc32(use.encode()) * 0x3C6EF372 % 2**31
    key = mixed(seed % M ^ mixed((seed // M + number) % M))
    return mixed(mixed((key + element) % M) ^ key) % 2**31


def test_every_number_is_that_of_the_formula() -> None:
    """Against whole numbers of Python and float64, element by element, at extremes of the seed."""
    seeds = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**63 - 1, *SEEDS[:3].tolist()])
    n = 37
    found = {name: kind(seeds, "mask", n) for name, kind in KINDS.items()}
    for row, seed in enumerate(seeds.tolist()):
        words = [bits(seed, "mask", i) for i in range(n)]
        assert found["uniform"][row].tolist() == [(w >> 7) / 2**24 for w in words]
        assert found["orders"][row].tolist() == sorted(range(n), key=lambda i, w=words: w[i])
        radius = [-math.log((bits(seed, "mask/radius", i) + 0.5) / 2**31) for i in range(n)]
        turns = [(bits(seed, "mask/turn", i) >> 7) / 2**24 for i in range(n)]
        gauss = [math.sqrt(2 * r) * math.cos(2 * math.pi * t) for r, t in zip(radius, turns, strict=True)]
        exponential = [-math.log1p(-(w + 0.5) / 2**31) for w in words]
        for name, truth in (("gaussian", gauss), ("exponential", exponential),
                            ("gumbel", [-math.log(e) for e in exponential])):  # fmt: skip
            torch.testing.assert_close(found[name][row].double(), torch.tensor(truth).double(), rtol=2e-6, atol=3e-6)


def test_extreme_bits_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = torch.tensor([[0, 1, 2**31 - 65, 2**31 - 2, 2**31 - 1]], dtype=torch.int32)
    monkeypatch.setattr(noise, "_bits", lambda *_: extremes)
    for name in ("uniform", "gaussian", "gumbel", "exponential"):
        assert KINDS[name](SEEDS, "x", 5).isfinite().all(), name
    assert (noise.exponential(SEEDS, "x", 5) > 0).all() and noise.uniform(SEEDS, "x", 5).max() < 1
    assert noise.gumbel(SEEDS, "x", 5).max() > 22


def test_distributions_are_the_named_ones() -> None:
    """Kolmogorov-Smirnov at 64 · 4,000 numbers (a fault of .4 % in the distribution shows), moments, and tails."""
    n = 4000
    normal = torch.distributions.Normal(0.0, 1.0)
    for name, cdf in {
        "uniform": lambda x: x, "gaussian": normal.cdf, "exponential": lambda x: 1 - (-x).exp(),
        "gumbel": lambda x: (-(-x).exp()).exp(),
    }.items():  # fmt: skip
        values = KINDS[name](SEEDS, "test", n).double().flatten().sort().values
        steps = torch.arange(1, len(values) + 1) / len(values)
        assert (cdf(values) - steps).abs().max() < 2 / len(values) ** 0.5, name
    values = noise.gaussian(SEEDS, "test", n).double()
    deviation = values.numel() ** -0.5
    assert abs(values.mean()) < 4 * deviation and abs(values.var() - 1) < 6 * deviation
    assert values.pow(4).mean().item() == pytest.approx(3, abs=40 * deviation)


def test_samples_elements_and_uses_are_independent() -> None:
    """Neighbouring seeds too: 0, 1, 2 ... stand for whatever a caller makes of them."""
    n = 2000
    for seeds in (SEEDS, torch.arange(64), views(SEEDS[:32], 64)):
        rows = torch.cat([noise.gaussian(seeds, use, n) for use in ("mask", "mask2")])  # [2 · 64, n]
        assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 5.5 / n**0.5
        assert torch.corrcoef(rows[:, :300].T).fill_diagonal_(0).abs().max() < 5.5 / len(rows) ** 0.5
        assert torch.corrcoef(torch.stack([rows[:, :-1].flatten(), rows[:, 1:].flatten()]))[0, 1].abs() < 0.01


def test_orders_are_fair_permutations() -> None:
    """Each element is first, second ... equally often, and the places of two elements have nothing to do with each
    other (chi² over pairs of places)."""
    n, many = 5, 20_000
    seeds = torch.from_numpy(rng.seeds(np.arange(many), 3, "images"))
    found = noise.orders(seeds, "mask", n)
    assert torch.equal(found.sort(-1).values, torch.arange(n).expand(many, n))
    codes = (found * torch.tensor([n**i for i in range(n)])).sum(-1)
    counts = codes.unique(return_counts=True)[1].double()
    assert len(counts) == math.factorial(n)
    expected = many / math.factorial(n)
    chi2, freedom = float(((counts - expected) ** 2 / expected).sum()), math.factorial(n) - 1
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5
    ranks = found.argsort(-1)
    assert torch.equal(found.gather(-1, ranks), torch.arange(n).expand(many, n))


def test_an_element_knows_nothing_of_its_company() -> None:
    """Fewer elements, fewer samples, another order of them, packed rows [R, T]: each keeps its numbers; nothing is
    drawn from torch's generators."""
    state = torch.get_rng_state()
    for name, kind in KINDS.items():
        whole = kind(SEEDS, "mask", 50)
        assert torch.equal(kind(SEEDS.flip(0)[:7], "mask", 50), whole.flip(0)[:7]), name
        assert torch.equal(kind(SEEDS.view(8, 8), "mask", 50), whole.view(8, 8, 50)), name
        if name != "orders":
            assert torch.equal(kind(SEEDS, "mask", 20), whole[:, :20]), name
        assert not torch.equal(kind(SEEDS, "other", 50), whole), name
        both = kind(views(SEEDS, 128), "mask", 50)
        assert torch.equal(both[:64], whole) and torch.equal(both[64:], kind(another(SEEDS, 1), "mask", 50)), name
        assert not (both[:64] == both[64:]).all(-1).any(), name
    assert torch.equal(state, torch.get_rng_state())


def test_shapes_are_enough_and_autocast_changes_nothing() -> None:
    for name, kind in KINDS.items():
        plain = kind(SEEDS, "mask", 9)
        assert kind(SEEDS.to("meta"), "mask", 9).shape == (64, 9)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert kind(torch.empty(3, dtype=torch.int64), "mask", 9).shape == (3, 9)
        with torch.autocast("cpu", torch.bfloat16):
            again = kind(SEEDS, "mask", 9)
        assert again.dtype == plain.dtype and torch.equal(again, plain), name


def test_recomputing_gives_the_same() -> None:
    """What activation checkpointing computes again is what it computed."""
    seen: list[Tensor] = []

    def noisy(x: Tensor) -> Tensor:
        seen.append(noise.gaussian(SEEDS, "jitter", 8))
        return (x * seen[-1]).tanh()

    x = torch.ones(64, 8, requires_grad=True)
    y: Any = checkpoint(noisy, x, use_reentrant=False)
    y.sum().backward()
    assert len(seen) == 2 and torch.equal(*seen)
    torch.testing.assert_close(x.grad, seen[0] * (1 - seen[0].tanh() ** 2))


def on_a_rank() -> dict[str, Tensor]:
    zero.start()
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = SEEDS[rank * 64 // world : (rank + 1) * 64 // world]
    return {name: kind(mine, "mask", 21) for name, kind in KINDS.items()}


@pytest.mark.distributed
def test_two_ranks_have_the_noise_of_one(ranks: Any) -> None:
    parts = ranks(on_a_rank, 2)
    for name, kind in KINDS.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), kind(SEEDS, "mask", 21)), name
