"""Schedules, parameter groups, and LAMB and LARS against their papers in loops."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bigssl.config.conflicts import of_schedule
from bigssl.config.optim import OptimConfig
from bigssl.engine.layerwise import Lamb
from bigssl.engine.optim import build_optimizer, parameter_groups, schedule, set_learning_rate


def factors(steps: int = 100, **fields: Any) -> list[float]:
    config = OptimConfig.model_validate({"warmup": 10, **fields})
    return [schedule(config, step, steps) for step in range(steps)]


def test_warm_up_is_linear_and_ends_at_one() -> None:
    assert factors()[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors()[10] == 1.0
    assert factors(50, warmup=0.2) == factors(50, warmup=10) and factors(2, warmup=0.2)[0] == 1.0


def test_cosine_is_half_way_at_half_time_and_ends_at_final() -> None:
    curve = factors(110, final=0.2)
    assert curve[60] == pytest.approx(0.2 + 0.8 * 0.5)
    assert curve[-1] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 99 / 100)))
    assert curve[10:] == sorted(curve[10:], reverse=True)


def test_wsd_is_flat_then_linear() -> None:
    curve = factors(schedule="wsd", decay=0.2)
    assert curve[10:80] == [1.0] * 70
    assert curve[90] == pytest.approx(0.5) and curve[99] == pytest.approx(0.05)


def test_polynomial_and_constant() -> None:
    assert factors(110, schedule="polynomial", power=2.0)[60] == pytest.approx(0.25)
    assert set(factors(schedule="constant")[10:]) == {1.0}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(1, 2, 3))


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars", "muon", "sgd"])
def test_norms_and_biases_are_not_decayed_and_all_are_trained(name: str) -> None:
    model = network()
    model[0].requires_grad_(False)
    groups = parameter_groups(model, OptimConfig.model_validate({"name": name, "weight_decay": 0.3, "lr": 0.1}))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay.keys() == {id(p) for p in model.parameters() if p.requires_grad}
    for parameter in model[1:].parameters():
        assert decay[id(parameter)] == (0.3 if parameter.dim() > 1 else 0.0)


def test_muon_takes_hidden_matrices_only() -> None:
    model = network()
    groups = parameter_groups(model, OptimConfig.model_validate({"name": "muon", "lr": 0.1, "adam_lr": 0.01}))
    assert [id(p) for p in groups[0]["params"]] == [id(model[1].weight)]
    assert [group["lr"] for group in groups] == [0.1, 0.01, 0.01]
    set_learning_rate(groups, 0.5)
    assert [group["lr"] for group in groups] == [0.05, 0.005, 0.005]


def test_lamb_is_its_paper() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    optimizer = Lamb([weight], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.2)
    w, m, v = weight.detach().clone(), torch.zeros(3, 2).double(), torch.zeros(3, 2).double()
    for step in range(1, 4):
        grad = torch.randn(3, 2, dtype=torch.float64)
        weight.grad = grad.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * grad, 0.99 * v + 0.01 * grad * grad
        r = (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-6) + 0.2 * w
        w = w - 0.1 * (w.norm() / r.norm()) * r
        torch.testing.assert_close(weight.detach(), w, rtol=1e-6, atol=1e-8)


def test_lars_is_its_paper() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(2, 3, bias=False)
    section = {"name": "lars", "lr": 0.5, "momentum": 0.8, "weight_decay": 0.2, "trust": 0.01}
    weight, optimizer = layer.weight, build_optimizer(layer, OptimConfig.model_validate(section))
    w, velocity = weight.detach().clone(), torch.zeros(3, 2)
    for _ in range(3):
        grad = torch.randn(3, 2)
        weight.grad = grad.clone()
        optimizer.step()
        update = grad + 0.2 * w
        velocity = 0.8 * velocity + 0.01 * (w.norm() / update.norm()) * update
        w = w - 0.5 * velocity
        torch.testing.assert_close(weight.detach(), w, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_a_zero_layer_has_trust_one_and_biases_do_not_adapt(name: str) -> None:
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    optimizer = build_optimizer(model, OptimConfig.model_validate({"name": name, "lr": 0.1}))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters()) and model.weight.any()
    assert [group["adapt"] for group in optimizer.param_groups] == [True, False]


def test_no_recipe_that_passes_has_a_jump_in_its_rate() -> None:
    """Warm-up rises by 1/warmup a step, the decay falls by its slope; where they overlap, the rate would jump."""
    steps, found = 50, {True: 0, False: 0}
    for warmup, decay in itertools.product(range(0, steps, 7), (0.1, 0.3, 0.5, 0.9, 1.0)):
        config = OptimConfig(schedule="wsd", warmup=warmup, decay=decay)
        rates = [schedule(config, step, steps) for step in range(steps)]
        jump = max(abs(after - before) for before, after in itertools.pairwise(rates))
        smooth = jump <= max(1 / max(warmup, 1) * (warmup > 1), 1 / (steps * decay)) + 1e-9
        refused = bool(list(of_schedule(SimpleNamespace(optim=config, steps=steps))))  # type: ignore[arg-type]
        assert smooth or refused, (warmup, decay, jump)
        found[smooth] += 1
    assert found[True] > 5 and found[False] > 5
