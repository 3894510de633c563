"""Norms, clipping and constraints at every stage, with accumulation and the optimizer on the host, are torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bigssl.config.recipe import Recipe
from bigssl.engine import zero
from bigssl.engine.optim import build_optimizer
from bigssl.nets.constraint import Constraint
from bigssl.objectives.base import Objective

STEPS, BATCH, ACCUM = 4, 8, 2
CASES = [(0, {}), (1, {}), (2, {}), (3, {}), (3, {"stage3_param_persistence_threshold": 0, "sub_group_size": 30}),
         (2, {"offload_optimizer": {"device": "cpu"}}), (3, {"offload_optimizer": {"device": "cpu"}})]  # fmt: skip


class Net(Objective):
    """`ceiling` is a weight that would run away from its cap."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), nn.Linear(3, 2)
        self.ceiling = nn.Parameter(torch.tensor([0.1]))

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        loss: Tensor = (self.head(self.body(batch[0])) - batch[1]).square().mean() - self.ceiling[0]
        return loss

    def constraints(self) -> list[Constraint]:
        rows = Constraint([self.body[2].weight], lambda value: functional.normalize(value, dim=1))
        return [Constraint([self.ceiling], lambda value: value.clamp(max=0.15)), rows]


def recipe(stage: int, options: dict[str, Any]) -> Recipe:
    groups = [{"pattern": "^head", "clip": 0.05, "lr": 2.0}, {"pattern": "^ceiling", "clip": 0.0}]
    return Recipe.model_validate({
        "name": "clip", "steps": STEPS, "objective": {}, "backbones": {"unused": {"type": "resnet"}},
        "data": {"sources": {}}, "batch": {"size": BATCH}, "zero": {"stage": stage, "options": options},
        "optim": {"lr": 0.05, "clip": 0.3, "weight_decay": 0.0, "groups": groups},
    })  # fmt: skip


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 5, generator=generator), torch.randn(BATCH, 2, generator=generator)


def plain() -> tuple[list[float], dict[str, Tensor]]:
    """torch's groups, torch's clipping, one process; the update of step 1 is left out."""
    net = Net()
    optimizer = torch.optim.AdamW([
        {"params": net.body.parameters()}, {"params": net.head.parameters(), "lr": 0.1}, {"params": [net.ceiling]},
    ], lr=0.05, weight_decay=0.0)  # fmt: skip
    norms = []
    for step in range(STEPS):
        optimizer.zero_grad()
        net(data(step)).backward()
        clips = ((net.body, 0.3), (net.head, 0.05))
        parts = [nn.utils.clip_grad_norm_(part.parameters(), most) for part, most in clips]
        norms.append(float(torch.stack([*parts, net.ceiling.grad.norm()]).norm()))  # type: ignore[union-attr]
        if step != 1:
            optimizer.step()
            with torch.no_grad():
                net.ceiling.clamp_(max=0.15)
                net.body[2].weight.div_(net.body[2].weight.norm(dim=1, keepdim=True))
    return norms, net.state_dict()


def sharded() -> list[tuple[list[float], list[bool], dict[str, Tensor], int]]:
    zero.start()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    micro, found = BATCH // world // ACCUM, []
    for stage, options in CASES:
        net, config = Net(), recipe(stage, options)
        optimizer = build_optimizer(net, config.optim)
        engine = zero.Engine(net, optimizer, config, micro=micro, accum=ACCUM, bf16=False)
        norms, applied = [], []
        for step in range(STEPS):
            mine = slice(rank * micro * ACCUM, (rank + 1) * micro * ACCUM)
            rows, target = (part[mine] for part in data(step))
            for part in range(ACCUM):
                loss = engine((rows[part::ACCUM], target[part::ACCUM]))
                engine.backward(loss * float("nan") if step == 1 and rank == 1 else loss)
                engine.step()
                applied.append(engine.applied)
            norms.append(engine.grad_norm)
        found.append((norms, applied, zero.full_state(net), engine.skipped))
    return found


@pytest.mark.distributed
def test_norms_clipping_by_group_and_constraints_are_torchs(ranks: Any) -> None:
    """A step of which one rank's gradient is NaN is not applied anywhere, and neither are the constraints."""
    want_norms, want = plain()
    mine, other = ranks(sharded, 2)
    for (norms, applied, state, skipped), (elsewhere, _, _, _), case in zip(mine, other, CASES, strict=True):
        assert not torch.tensor(norms[1]).isfinite() and skipped == 1, case
        assert applied == [False, True, False, False, False, True, False, True], case
        for step in (0, 2, 3):
            assert norms[step] == pytest.approx(want_norms[step], rel=1e-5) == elsewhere[step], case
        for name, value in want.items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6, msg=f"{case}: {name}")
    assert want["ceiling"].item() == pytest.approx(0.15)
