"""The training of an evaluation: the order of the samples, learning rates, randomness."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.data.errors import DataError
from bigssl.transfer.labelled.fit import Fit, fit, layer_groups


def trained(settings: Fit, count: int, seed: int = 0, *, width: int = 6, seen: list[Tensor] | None = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        x, y = torch.randn(count, width), torch.randn(count, 1)

    def loss(rows: Tensor) -> Tensor:
        if seen is not None:
            seen.append(rows)
        return (module(x[rows]) - y[rows]).square().mean()

    return fit(module, [{"params": list(module.parameters())}], count, loss, settings, seed)


def test_each_epoch_sees_each_sample_once_in_batches_of_nearly_one_size() -> None:
    seen: list[Tensor] = []
    trained(Fit(epochs=3, fit_batch=8), 33, seen=seen)
    assert [len(rows) for rows in seen] == [7, 7, 7, 6, 6] * 3, "not 8, 8, 8, 8 and a lone one"
    epochs = [torch.cat(seen[start : start + 5]).tolist() for start in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(33)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])


def test_few_samples_are_seen_more_often_until_there_are_enough_steps() -> None:
    seen: list[Tensor] = []
    trained(Fit(epochs=3, fit_batch=8, least_steps=14), 20, seen=seen)
    assert len(seen) == 15 and all(torch.cat(seen).bincount() == 5), "five epochs of three"
    seen.clear()
    trained(Fit(epochs=3, fit_batch=8, least_steps=8), 20, seen=seen)
    assert len(seen) == 9


def test_what_is_learnt_depends_on_the_seed_and_on_nothing_that_was_drawn_before() -> None:
    settings = Fit(epochs=2, fit_batch=8)
    first = trained(settings, 20).state_dict()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again, other = trained(settings, 20).state_dict(), trained(settings, 20, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "the global generator goes on where it was"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_networks_that_draw_from_numpy_or_python_learn_the_same_again() -> None:
    """Wav2Vec2 masks frames by numpy's global generator while it is trained."""
    drawn: list[tuple[float, float]] = []

    def run(seed: int) -> list[tuple[float, float]]:
        module = nn.Linear(2, 1)
        drawn.clear()

        def loss(rows: Tensor) -> Tensor:
            drawn.append((np.random.rand(), random.random()))
            return module.weight.sum()

        fit(module, [{"params": list(module.parameters())}], 3, loss, Fit(epochs=3), seed)
        return list(drawn)

    first, before = run(0), (np.random.rand(), np.random.get_state()[2], random.getstate())
    assert run(0) == first != run(1)
    assert (np.random.get_state()[2], random.getstate()) == before[1:], "they go on where they were"


def test_weights_that_the_last_step_made_infinite_are_said() -> None:
    module = nn.Linear(2, 1)
    with pytest.raises(DataError, match=r"^weights weight are not finite after 1 steps; lower lr"):
        fit(module, [{"params": list(module.parameters()), "scale": math.inf}], 3, lambda rows: module.weight.sum(),
            Fit(epochs=1), 0)  # fmt: skip


def test_steps_are_those_of_adamw_at_a_rate_that_rises_and_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: (
        rates.append(self.param_groups[0]["lr"]), step(self, *a))[1])  # fmt: skip
    module = trained(Fit(epochs=5, fit_batch=10, lr=0.4, warmup=0.2), 20)
    expected = [0.2, 0.4] + [0.2 * (1 + math.cos(math.pi * n / 8)) for n in range(8)]
    assert rates == pytest.approx(expected) and not module.training


def test_a_loss_that_is_no_number_is_said() -> None:
    module = nn.Linear(2, 1)
    with pytest.raises(DataError, match=r"^loss nan at step 0 of 2; lower lr \(value 0.5\)$"):
        fit(module, [{"params": list(module.parameters())}], 3, lambda rows: module.weight.sum() * math.nan,
            Fit(epochs=2, lr=0.5), 0)  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_learning_rates_fall_from_layer_to_layer(kind: str, make_model: Callable[..., PreTrainedModel]) -> None:
    changes: dict[str, Any] = {"num_hidden_layers": 3} if kind == "bert" else {}
    model, head = make_model(kind, **changes), nn.Linear(16, 3)
    groups = layer_groups(model, 0.5, list(head.parameters()))
    scale = {id(p): (g["scale"], g.get("weight_decay")) for g in groups for p in g["params"]}
    blocks = 3 if kind == "bert" else 2
    list_of = "encoder.layer." if kind == "bert" else "encoder.stages."
    for name, parameter in model.named_parameters():
        below = blocks + 1
        if name.startswith(list_of):
            below = blocks - int(name.removeprefix(list_of).split(".")[0])
        elif name.startswith("pooler"):
            below = 0
        assert scale.pop(id(parameter)) == (0.5**below, None if parameter.ndim > 1 else 0.0), name
    assert {scale.pop(id(head.weight)), scale.pop(id(head.bias))} == {(1.0, None), (1.0, 0.0)} and not scale


def test_layers_without_an_order_have_one_rate_or_are_refused() -> None:
    from transformers import AlbertConfig, AlbertModel

    model = AlbertModel(AlbertConfig(vocab_size=20, embedding_size=8, hidden_size=8, num_hidden_layers=2,
                                     num_attention_heads=2, intermediate_size=8))  # fmt: skip
    with pytest.raises(DataError, match="the layers of albert share their weights; allowed: layer_decay=1"):
        layer_groups(model, 0.9)
    assert {group["scale"] for group in layer_groups(model, 1.0)} == {1.0}
    assert sum(len(group["params"]) for group in layer_groups(model, 1.0)) == len(list(model.parameters()))
