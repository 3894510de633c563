"""Gradients of several losses, and the rules that weigh them, against their papers' formulas in plain numpy."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bigssl.nets.weighing.gradients import are_whole, carrying, cosines, gradients_of, gram
from bigssl.nets.weighing.rules import GradNorm, Uncertainty, gradnorm_slope, surgery, uncertain

sizes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))


def pcgrad(gradients: np.ndarray, seed: int) -> np.ndarray:
    """Algorithm 1 of Yu et al. 2020, on the vectors themselves."""
    chance, total = random.Random(seed), np.zeros(gradients.shape[1])
    for own in range(len(gradients)):
        mine = gradients[own].copy()
        for other in chance.sample(range(len(gradients)), len(gradients)):
            theirs = gradients[other]
            if other != own and mine @ theirs < 0:
                mine -= (mine @ theirs) / (theirs @ theirs) * theirs
        total += mine
    return total


@settings(deadline=None, max_examples=60)
@given(sizes)
def test_surgery_is_pcgrad(shape: tuple[int, int, int]) -> None:
    count, width, seed = shape
    gradients = np.random.default_rng(seed).normal(size=(count, width))
    factors = surgery(torch.from_numpy(gradients @ gradients.T), seed).numpy()
    assert np.allclose(factors @ gradients, pcgrad(gradients, seed), atol=1e-9)


def test_after_surgery_two_gradients_do_not_conflict_and_one_of_nothing_is_no_error() -> None:
    first, second = np.array([1.0, 0.0]), np.array([-1.0, 1.0])
    both = np.stack([first, second])
    mixed = surgery(torch.from_numpy(both @ both.T), 0).numpy() @ both
    assert mixed @ first >= 0 and mixed @ second >= 0 and not np.allclose(mixed, first + second)
    nothing = np.stack([first, np.zeros(2)])
    assert np.allclose(surgery(torch.from_numpy(nothing @ nothing.T), 0).numpy() @ nothing, first)


@settings(deadline=None, max_examples=40)
@given(sizes)
def test_the_slope_of_gradnorm_is_that_of_its_loss(shape: tuple[int, int, int]) -> None:
    count, _, seed = shape
    rng = np.random.default_rng(seed)
    weights, norms, left = rng.uniform(0.5, 2, (3, count))
    alpha = 1.5
    aims = (weights * norms).mean() * (left / left.mean()) ** alpha  # held fixed

    def loss(values: np.ndarray) -> float:
        return float(np.abs(values * norms - aims).sum())

    slope = gradnorm_slope(*map(torch.from_numpy, (weights, norms, left)), alpha).numpy()
    for place in range(count):
        step = np.zeros(count)
        step[place] = 1e-7
        if abs(weights[place] * norms[place] - aims[place]) > 1e-5:  # not at the kink
            assert slope[place] == pytest.approx((loss(weights + step) - loss(weights - step)) / 2e-7, rel=1e-4)


def test_gradnorm_moves_as_adam_does_and_keeps_its_sum() -> None:
    start, rate = np.array([1.0, 0.5, 2.0]), 0.025
    moving, rng = GradNorm(torch.tensor(start, dtype=torch.float32), alpha=1.5, rate=rate), np.random.default_rng(0)
    weights, mean, square, first = start.copy(), np.zeros(3), np.zeros(3), None
    for step in range(1, 6):
        norms, losses = rng.uniform(0.1, 3, (2, 3))
        moving.move(torch.from_numpy(norms), torch.from_numpy(losses))
        first = losses if first is None else first
        left = losses / first
        weighted = weights * norms
        slope = np.sign(weighted - weighted.mean() * (left / left.mean()) ** 1.5) * norms
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        weights = weights - rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        weights = np.maximum(weights, 0.01)
        weights *= start.sum() / weights.sum()
        assert np.allclose(moving.weights.numpy(), weights, rtol=1e-5)
    before = {name: value.clone() for name, value in moving.state_dict().items()}
    for norms, losses in (([1, np.nan, 1], [1, 1, 1]), ([1, 1, 1], [1, np.inf, 1])):
        moving.move(torch.tensor(norms), torch.tensor(losses))
    assert all(torch.equal(before[name], value) for name, value in moving.state_dict().items())


def test_gradnorm_prefers_the_loss_that_falls_behind_and_the_gradient_that_is_small() -> None:
    behind, small = (GradNorm(torch.ones(2), alpha=1.5, rate=0.1) for _ in range(2))
    for step in range(20):
        behind.move(torch.ones(2), torch.tensor([1.0, 0.9**step]))
        small.move(torch.tensor([0.1, 1.0]), torch.ones(2))
    assert behind.weights[0] > 1.2 > behind.weights[1] and small.weights[0] > 1.5


def test_uncertainty_is_the_papers_and_its_minimum_is_the_logarithm_of_the_loss() -> None:
    nats, losses = torch.tensor([True, False]), np.array([0.3, 2.0])
    values = np.array([0.4, -0.7])
    factors, added = uncertain(torch.from_numpy(values), nats)
    sigma = np.exp(values / 2)
    assert np.allclose((factors.numpy() * losses), [losses[0] / sigma[0] ** 2, losses[1] / (2 * sigma[1] ** 2)])
    assert np.allclose(added.numpy(), np.log(sigma))
    rule = Uncertainty(2)
    optimizer = torch.optim.Adam(rule.parameters(), lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        factors, added = rule(nats)
        (factors * torch.from_numpy(losses).float() + added).sum().backward()
        optimizer.step()
    assert np.allclose(rule.log_variances.detach().exp().numpy(), [2 * losses[0], losses[1]], rtol=1e-2)


def test_products_of_gradients_are_those_of_autograd_whatever_reaches_what() -> None:
    torch.manual_seed(0)
    body, heads = nn.Linear(4, 5), nn.ModuleList([nn.Linear(5, 1) for _ in range(3)])
    hidden = body(torch.randn(7, 4))
    losses = [head(hidden).square().mean() for head in heads[:2]] + [torch.tensor(1.0)]
    shared = list(body.parameters())
    assert are_whole(shared)
    products = gram(gradients_of(losses, shared), hidden)
    vectors = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)])
               for loss in losses[:2]] + [torch.zeros(25)]  # fmt: skip
    wanted = torch.stack([torch.stack([a.double() @ b.double() for b in vectors]) for a in vectors])
    assert torch.allclose(products, wanted, rtol=1e-5)
    norms, angles = cosines(products)
    assert norms[2] == 0 and not angles[2].any() and angles[0, 0] == pytest.approx(1, abs=1e-6)
    assert angles[0, 1].item() == pytest.approx(torch.cosine_similarity(vectors[0], vectors[1], 0).item(), abs=1e-5)
    assert all(parameter.grad is None for parameter in body.parameters())


def test_a_value_carries_the_gradients_it_is_given() -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))
    total = carrying((first.sum() + second.sum()) * 2, [(first, torch.tensor([1.0, 2.0, 3.0])),
                                                        (second, torch.full((2, 2), 7.0))])  # fmt: skip
    assert total.item() == 14
    (total / 2).backward()
    assert torch.equal(first.grad, torch.tensor([0.5, 1.0, 1.5])) and torch.equal(second.grad, torch.full((2, 2), 3.5))
