"""A tied embedding under ZeRO stage 3: the masked-language head has it whole, and training equals one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bigssl.config.recipe import Recipe
from bigssl.engine import zero
from bigssl.engine.optim import build_optimizer, schedule, set_learning_rate
from bigssl.nets.heads.base import MaskedLanguageHead

STEPS, BATCH, LENGTH, WORDS = 4, 8, 6, 13


def recipe(stage: int) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tied",
            "steps": STEPS,
            "objective": {},
            "backbones": {"unused": {"type": "resnet"}},
            "data": {"sources": {}},
            "batch": {"size": BATCH},
            "zero": {"stage": stage},
            "optim": {"name": "adamw", "lr": 0.05, "warmup": 1, "clip": 0.1, "weight_decay": 0.1},
        }
    )


class Model(nn.Module):
    """Embedding, a layer, and the head that shares the embedding. The loss is a sum, so that ranks' means add up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, 5)
        self.layer = nn.Linear(5, 7)  # wider than the embedding, as ALBERT's and ELECTRA's
        self.head = MaskedLanguageHead(self.words.weight, 7)

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        tokens, labels = batch
        return self.head(torch.tanh(self.layer(self.words(tokens))), labels) / 100


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens, labels = torch.randint(WORDS, (2, BATCH, LENGTH), generator=generator)
    return tokens, labels.masked_fill(torch.rand(BATCH, LENGTH, generator=generator) < 0.6, -100)


def alone(config: Recipe) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = Model()
    optimizer = build_optimizer(model, config.optim)
    losses = []
    for step in range(STEPS):
        set_learning_rate(optimizer.param_groups, schedule(config.optim, step, STEPS))
        loss = model(data(step)) / 2  # two ranks average their sums
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip or 1e9)
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def sharded(config: Recipe) -> tuple[list[float], dict[str, torch.Tensor]]:
    zero.start()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    module = Model()
    optimizer = build_optimizer(module, config.optim)
    engine = zero.Engine(module, optimizer, config, micro=BATCH // world, accum=1, bf16=False)
    losses = []
    for step in range(STEPS):
        set_learning_rate(engine.groups, schedule(config.optim, step, STEPS))
        mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        tokens, labels = data(step)
        loss = engine((tokens[mine], labels[mine]))
        engine.backward(loss)
        engine.step()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        losses.append(total.item() / world)
    return losses, zero.full_state(module)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_equal_one_process(ranks: Any, stage: int) -> None:
    config = recipe(stage)
    want_losses, want = alone(config)
    (losses, state), _ = ranks(sharded, 2, config)
    assert losses == pytest.approx(want_losses, rel=1e-5)
    assert losses[-1] < losses[0]
    for name, tensor in want.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
