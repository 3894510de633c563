"""DeepSpeed at every stage is plain PyTorch on the same global batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bigssl.config.recipe import Recipe
from bigssl.engine import settings, zero
from bigssl.engine.optim import build_optimizer, schedule, set_learning_rate

STEPS, BATCH, ACCUM = 6, 8, 2
OWN = {"pattern": r"\b0\.weight$", "lr": 0.5, "weight_decay": 0.3, "clip": 0.02}  # the embedding


def recipe(optimizer: dict[str, Any], stage: int) -> Recipe:
    clip = 0.0 if optimizer["name"] == "muon" and stage in (1, 2) else 0.1
    return Recipe.model_validate(
        {
            "name": "parity",
            "steps": STEPS,
            "objective": {},
            "backbones": {"unused": {"type": "resnet"}},
            "data": {"sources": {}},
            "batch": {"size": BATCH},
            "zero": {"stage": stage},
            "optim": {"lr": 0.05, "warmup": 2, "clip": clip, "weight_decay": 0.1,
                      "groups": [OWN], **optimizer},
        }
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    hidden = [nn.Linear(18, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 5)]
    return nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), *hidden)


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(11, (BATCH, 3), generator=generator), torch.randn(BATCH, 5, generator=generator)


def plain(config: Recipe) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The reference: one process, one batch, torch's own clipping."""
    model = network()
    optimizer = build_optimizer(model, config.optim)
    losses = []
    for step in range(STEPS):
        set_learning_rate(optimizer.param_groups, schedule(config.optim, step, STEPS))
        tokens, target = data(step)
        loss = (model(tokens) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model[0].parameters(), 0.02)
        nn.utils.clip_grad_norm_(model[1:].parameters(), config.optim.clip or 1e9)
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


class MeanSquare(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()


def sharded(config: Recipe, accum: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    zero.start()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    micro = BATCH // world // accum
    module = MeanSquare(network())
    optimizer = build_optimizer(module, config.optim)
    engine = zero.Engine(module, optimizer, config, micro=micro, accum=accum, bf16=False)
    losses = []
    for step in range(STEPS):
        set_learning_rate(engine.groups, schedule(config.optim, step, STEPS))
        tokens, target = data(step)
        mine = slice(rank * micro * accum, (rank + 1) * micro * accum)
        total = torch.zeros(())
        for part in range(accum):
            piece = tokens[mine][part::accum], target[mine][part::accum]
            loss = engine(piece)
            engine.backward(loss)
            engine.step()
            total += loss.detach() / accum
        torch.distributed.all_reduce(total)
        losses.append(total.item() / world)
    return losses, zero.full_state(module.net)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("optimizer", "stage"),
    [(name, stage) for name in ("adamw", "lamb", "lars", "muon") for stage in range(4)] + [("sgd", 2), ("sgd", 3)],
)
def test_two_ranks_equal_plain_torch(ranks: Any, optimizer: str, stage: int) -> None:
    # the usual trust, .001, moves a layer by less than the bounds below: any norm would do
    config = recipe({"name": optimizer} | ({"trust": 0.5} if optimizer == "lars" else {}), stage)
    want_losses, want = plain(config)
    (losses, state), (_, elsewhere) = ranks(sharded, 2, config, ACCUM)
    assert losses == pytest.approx(want_losses, rel=1e-5)
    assert losses[-1] < losses[0] and not elsewhere
    for name, tensor in want.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.distributed
@pytest.mark.parametrize("options", [{}, {"overlap_comm": False}], ids=str)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_bucket_that_fits_the_network_changes_no_bit(crew: Any, stage: int, options: dict[str, Any]) -> None:
    """Against DeepSpeed's own default, 500 million elements; and 20 elements, fewer than most tensors here have."""

    def run(**bucket: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        config = recipe({"name": "adamw"}, stage)
        config.zero.options.update(options | bucket)
        return crew(sharded, 2, config, ACCUM)[0]  # type: ignore[no-any-return]

    (losses, state), (want_losses, want) = run(), run(reduce_bucket_size=500_000_000)
    assert losses == want_losses and all(torch.equal(state[name], tensor) for name, tensor in want.items())
    losses, state = run(reduce_bucket_size=20)
    assert losses == pytest.approx(want_losses, rel=1e-5)
    for name, tensor in want.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_a_bucket_is_an_eighth_of_what_is_trained_or_what_the_recipe_says() -> None:
    """Tensors without memory stand for networks of any size. Of small ones it is all, and no part of a tensor; there
    are two at stages 1 and 2, of which one travels."""
    config = recipe({"name": "adamw"}, 2)
    with torch.device("meta"):
        small, huge = nn.Linear(7, 5), nn.Linear(40_000, 20_000)
        deep = nn.Sequential(*(nn.Linear(4000, 1000, bias=False) for _ in range(20)))
    small.bias.requires_grad_(False)
    assert [zero.settings_of(config, stage, small).buckets for stage in range(4)] == [0, 70, 70, 35]
    assert zero.settings_of(config, 3, deep).buckets == 10_000_000
    assert zero.settings_of(config, 2, huge).buckets == 1_000_000_000
    assert zero.DeepSpeedZeroConfig().reduce_bucket_size == settings.BUCKET
    config.zero.options.update(overlap_comm=False)
    assert [zero.settings_of(config, stage, small).buckets for stage in range(4)] == [0, 35, 35, 35]
    config.zero.options.update(reduce_bucket_size=123)
    for stage in (1, 2, 3):  # the engine is told what the plan counts
        told = settings.zero_options(config, stage, small)
        assert told["reduce_bucket_size"] == 123 and told["stage"] == stage and told["overlap_comm"] is False
        assert zero.settings_of(config, stage, small).buckets == 123
