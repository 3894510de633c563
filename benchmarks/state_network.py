"""The network of state_matrix.py: one of everything that a checkpoint may forget."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bigssl.config.optim import Group
from bigssl.nets.constraint import Constraint
from bigssl.nets.ema import Ema
from bigssl.nets.norm import GlobalBatchNorm
from bigssl.nets.progress import CosineRamp
from bigssl.objectives.base import Objective


class Counter(nn.Module):
    """State that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = int(state)


class Network(Objective):
    """Odd sizes, BatchNorm, a frozen layer, tied weights, a scale of one element, extra state, groups, constraints, a
    teacher."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.frozen = nn.Embedding(11, 6), nn.Linear(6, 5).requires_grad_(False)
        self.first, self.norm = nn.Linear(18, 33, bias=False), GlobalBatchNorm(33)
        self.second, self.third, self.last = nn.Linear(33, 9), nn.Linear(9, 9, bias=False), nn.Linear(9, 5)
        self.tied = nn.Linear(9, 9, bias=False)
        self.tied.weight = self.third.weight
        self.scale, self.counter = nn.Parameter(torch.full([1], 0.5)), Counter()
        student = nn.ModuleDict({"first": self.first, "norm": self.norm, "frozen": self.frozen, "second": self.second})
        self.teacher = Ema(student, CosineRamp(0.7, 1.0))
        self.seen = 0.0  # what a task keeps by itself: extra state of the outermost module

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.seen)

    def set_extra_state(self, state: Tensor) -> None:
        self.seen = float(state)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        tokens, target = batch
        self.counter.calls += 1
        self.seen = 0.9 * self.seen + 1
        embedded = self.embed(tokens)
        hidden = self.second(functional.gelu(self.norm(self.first(embedded.flatten(1)))))
        out = self.last(self.third(hidden).tanh() + hidden) * self.scale.exp() + self.frozen(embedded.mean(1))
        taught = self.teacher.module
        with torch.no_grad():
            wanted = taught["second"](taught["norm"](taught["first"](embedded.flatten(1)))).tanh()
        loss: Tensor = (out - target).square().mean() + (hidden - wanted).square().mean()
        return loss

    def groups(self) -> list[Group]:
        return [Group(pattern="^last", lr=2.0, weight_decay=0.0), Group(pattern="scale$", clip=9.0)]

    def constraints(self) -> list[Constraint]:
        return [Constraint([self.second.weight], unit_rows), Constraint([self.scale], capped)]


def unit_rows(weight: Tensor) -> Tensor:
    return functional.normalize(weight, dim=1)


def capped(scale: Tensor) -> Tensor:
    return scale.clamp(max=0.51)
