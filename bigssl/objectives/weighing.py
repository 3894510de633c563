"""How a joint task makes one loss of those of its parts: L = Σ λ_k L_k, and rules that choose or replace the λ.

A part is balanced against those with which it shares a backbone. Rules that look at gradients (gradnorm, surgery, and
`watch`) need each parameter as a whole on each rank: ZeRO 0 to 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Section
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.nets.weighing.gradients import are_whole, carrying, cosines, gradients_of, gram
from bigssl.nets.weighing.rules import GradNorm, Uncertainty, surgery, uncertain
from bigssl.objectives.base import Losses

Share = Annotated[float, Field(ge=0, le=1)]
Factors = dict[str, Tensor | float]
NATS = "nats"


class Ramp(Section):
    """A weight that goes from `start` to `end` between two shares of the run."""

    start: float = Field(ge=0, description="λ until `begin`")
    end: float = Field(ge=0, description="λ from `until` on")
    begin: Share = Field(0.0, description="share of the run")
    until: Share = Field(1.0, description="share of the run")
    shape: Literal["linear", "cosine"] = "linear"

    @model_validator(mode="after")
    def _forwards(self) -> Ramp:
        if self.begin >= self.until:
            raise ValueError(f"begin {self.begin} and until {self.until}; allowed: begin < until")
        return self

    def __call__(self, at: Progress) -> float:
        done = min(1.0, max(0.0, (at.step / at.steps - self.begin) / (self.until - self.begin)))
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


Weight = Annotated[float, Field(ge=0)] | Ramp


class Balance(Section):
    """A rule in place of fixed weights."""

    rule: Literal["uncertainty", "gradnorm", "surgery"] = Field(
        description="learned variances (Kendall 2018), like norms of gradients (Chen 2018), or what conflicts with "
        "another projected out of each gradient (PCGrad, Yu 2020)"
    )
    alpha: float = Field(1.5, ge=0, description="gradnorm: how much a loss that falls behind is preferred")
    rate: float = Field(0.025, gt=0, description="gradnorm: learning rate of the weights")

    @model_validator(mode="after")
    def _used(self) -> Balance:
        if self.rule != "gradnorm":
            self.refuse_idle(f"with rule {self.rule}", "alpha", "rate")
        return self


def weight_at(weight: float | Ramp, at: Progress) -> float:
    """λ at some point of the run."""
    return weight(at) if isinstance(weight, Ramp) else weight


def ever_positive(weight: float | Ramp) -> bool:
    """Whether it is above 0 at any point of a run."""
    return max(weight.start, weight.end) > 0 if isinstance(weight, Ramp) else weight > 0


class Weighing(nn.Module):
    """The losses of parts to one loss. sharing: those that share a backbone with another, by name; `stats` hold of them
    `weight.PART` where a rule moves it, and every `watch` steps measured anew, the norms of their weighted gradients by
    the backbones they share, `gradient.PART`, and the cosines between them, `conflict.PART.PART` (< 0: they conflict).
    """

    norms: Tensor
    angles: Tensor

    def __init__(
        self,
        weights: Mapping[str, float | Ramp],
        balance: Balance | None,
        watch: int,
        bodies: Mapping[str, set[str]],
        towers: Mapping[str, Tower],
    ) -> None:
        """bodies: names of the backbones of each part."""
        super().__init__()
        self.weights, self.balance, self.watch = dict(weights), balance, watch
        users = {body: [name for name in weights if body in bodies[name]] for body in towers}
        self._shared = {body: (towers[body], names) for body, names in users.items() if len(names) > 1}
        self.sharing = [name for name in weights if any(name in names for _, names in self._shared.values())]
        self._layers: list[nn.Parameter] | None = None
        self._moved: int | None = None  # step at which weights were moved
        self._check()
        if self.rule == "uncertainty":
            self.variances = Uncertainty(len(weights))
        elif self.rule == "gradnorm":
            first = torch.tensor([self._fixed(name) for name in self.sharing])
            assert balance is not None
            self.moving = GradNorm(first, balance.alpha, balance.rate)
        if self.sharing and (watch or self.rule == "surgery"):
            self.register_buffer("norms", torch.zeros(len(self.sharing)))
            self.register_buffer("angles", torch.zeros(len(self.sharing), len(self.sharing)))

    @property
    def rule(self) -> str:
        return "fixed" if self.balance is None else self.balance.rule

    @property
    def sees_gradients(self) -> bool:
        """Whether the rule needs parameters as a whole."""
        return self.rule in ("gradnorm", "surgery")

    def _fixed(self, name: str) -> float:
        weight = self.weights[name]
        assert isinstance(weight, float | int)
        return weight

    def _check(self) -> None:
        ramps = [name for name, weight in self.weights.items() if isinstance(weight, Ramp)]
        if self.rule == "gradnorm" and ramps:
            raise ConfigError(f"objective.parts.{ramps[0]}.weight: a ramp, but objective.balance moves the weights; "
                              "allowed: a number, or no balance")  # fmt: skip
        if self.sees_gradients and not self.sharing:
            raise ConfigError(f"objective.balance.rule: value {self.rule!r}, but no two parts share a backbone, where "
                              "gradients would meet; allowed: uncertainty, or no balance")  # fmt: skip
        zero = [name for name in self.sharing if not ever_positive(self.weights[name])]
        if self.rule == "gradnorm" and zero:
            raise ConfigError(f"objective.parts.{zero[0]}.weight: value 0, but objective.balance moves the weights; "
                              "allowed: > 0")  # fmt: skip

    def embeddings(self) -> dict[str, Tensor]:
        """What it needs of its own parameters, [] each, where the losses are made apart from the networks."""
        if self.rule != "uncertainty":
            return {}
        return dict(zip(self.weights, self.variances.log_variances.unbind(), strict=True))

    def forward(
        self,
        losses: Mapping[str, Losses],
        at: Progress,
        parameters: Callable[[], Iterable[nn.Parameter]] | None = None,
        embedded: Mapping[str, Tensor] | None = None,
    ) -> Losses:
        """Collective.

        Args:
            parameters: gives those of the whole task (tensors would be inputs to ZeRO-3's hooks); None where the losses
                have no graph to them.
            embedded: `embeddings`, where there is none.
        """
        looks = self.training and torch.is_grad_enabled() and parameters is not None
        factors: Factors = {name: weight_at(weight, at) for name, weight in self.weights.items()}
        stats: dict[str, Tensor] = {}
        added: Mapping[str, Tensor] = {}
        if self.rule == "uncertainty":
            factors, added = self._uncertain(factors, losses, embedded)
        elif self.rule == "gradnorm":
            factors = self._normed(factors, losses, looks, at)
        weighted = {name: factors[name] * loss.total for name, loss in losses.items()}
        if self.rule in ("uncertainty", "gradnorm"):
            like = next(iter(losses.values())).total
            stats |= {f"weight.{name}": torch.as_tensor(value, device=like.device).detach().float()
                      for name, value in factors.items()}  # fmt: skip
        total = sum((*weighted.values(), *added.values()), start=0.0)
        assert isinstance(total, Tensor)
        if looks and parameters is not None and self.rule == "surgery":
            total = self._operated(weighted, total, [each for each in parameters() if each.requires_grad], at)
        elif looks and self.watch and self.sharing and at.step % self.watch == 0:
            self._look(weighted)
        blind = sum(factors[name] * loss.blind for name, loss in losses.items()) + sum(added.values())
        return Losses(
            total,
            blind.detach() if isinstance(blind, Tensor) else blind,
            unit=" + ".join(sorted({loss.unit for loss in losses.values()})),
            blind_name="its parts' blind predictors",
            parts={name: loss.detached() for name, loss in losses.items()},
            stats=stats | self._seen(),
        )

    def _uncertain(
        self, factors: Factors, losses: Mapping[str, Losses], embedded: Mapping[str, Tensor] | None
    ) -> tuple[Factors, dict[str, Tensor]]:
        """λ times the whole term of a part: were it not of ln σ too, one of λ 0 would drive its σ² to 0, where a ramp
        then begins at λ / σ²."""
        device = next(iter(losses.values())).total.device
        nats = torch.tensor([losses[name].unit == NATS for name in self.weights], device=device)
        of = self.variances(nats) if embedded is None else uncertain(torch.stack(list(embedded.values())), nats)
        own, added = (dict(zip(self.weights, each.unbind(), strict=True)) for each in of)
        return ({name: factors[name] * own[name] for name in losses},
                {name: factors[name] * added[name] for name in losses})  # fmt: skip

    def _normed(self, factors: Factors, losses: Mapping[str, Losses], looks: bool, at: Progress) -> Factors:
        if looks and at.step != self._moved:  # at the first of several passes of a step: all are weighed alike
            self._moved = at.step
            values = torch.stack([losses[name].total.detach().float() for name in self.sharing])
            totals = [losses[name].total for name in self.sharing]
            products = gram(gradients_of(totals, self._last_layers(totals)), values)
            values = distributed.all_reduce_sum(values) / distributed.world()
            self.moving.move(cosines(products)[0], values)
        moved: Factors = dict(zip(self.sharing, self.moving.weights.clone().unbind(), strict=True))
        return factors | moved

    def _last_layers(self, totals: Sequence[Tensor]) -> list[nn.Parameter]:
        """Of each shared backbone, the last matrix that all parts which share it reach."""
        if self._layers is None:
            found = list[nn.Parameter]()
            for body, (tower, names) in self._shared.items():
                own = [total for name, total in zip(self.sharing, totals, strict=True) if name in names]
                matrices = [each for each in tower.parameters() if each.requires_grad and each.dim() > 1]
                reached = zip(*gradients_of(own, matrices), strict=True)
                common = [each for each, gradients in zip(matrices, reached, strict=True)
                          if all(gradient is not None for gradient in gradients)]  # fmt: skip
                if not common:
                    raise ConfigError(f"objective.balance.rule: value 'gradnorm', but {', '.join(names)} train no "
                                      f"matrix of backbone {body!r} together; allowed: another rule")  # fmt: skip
                found.append(common[-1])
            self._layers = found
        return self._layers

    def _bodies(self) -> list[nn.Parameter]:
        every = [each for tower, _ in self._shared.values() for each in tower.parameters() if each.requires_grad]
        return list(dict.fromkeys(every))

    def _look(self, weighted: Mapping[str, Tensor]) -> None:
        shared = self._bodies()
        if are_whole(shared):
            self._keep(gram(gradients_of([weighted[name] for name in self.sharing], shared), self.norms))

    def _keep(self, products: Tensor) -> None:
        norms, angles = cosines(products)
        self.norms.copy_(norms)
        self.angles.copy_(angles)

    def _seen(self) -> dict[str, Tensor]:
        if "norms" not in self._buffers or not are_whole(self._bodies()):
            return {}
        pairs = [(i, j) for i in range(len(self.sharing)) for j in range(i)]
        found = {f"gradient.{name}": value for name, value in zip(self.sharing, self.norms.clone(), strict=True)}
        return found | {f"conflict.{self.sharing[j]}.{self.sharing[i]}": self.angles[i, j].clone() for i, j in pairs}

    def _operated(
        self, weighted: Mapping[str, Tensor], total: Tensor, trained: Sequence[nn.Parameter], at: Progress
    ) -> Tensor:
        """`total` with the gradients of PCGrad by what is shared, and its own by the rest."""
        names = list(weighted)
        found = dict(zip(names, gradients_of(list(weighted.values()), trained), strict=True))
        shared = set(self._bodies())
        at_shared = [number for number, each in enumerate(trained) if each in shared]
        products = gram([[found[name][number] for number in at_shared] for name in self.sharing], self.norms)
        self._keep(products)
        by_chance = surgery(products, at.step)
        factors = dict(zip(self.sharing, by_chance.to(self.norms.dtype).unbind(), strict=True))
        given = list[tuple[nn.Parameter, Tensor]]()
        for number, parameter in enumerate(trained):
            mixed = [gradient * (factors.get(name, 1.0) if parameter in shared else 1.0)
                     for name in names if (gradient := found[name][number]) is not None]  # fmt: skip
            if mixed:
                given.append((parameter, torch.stack(mixed).sum(0)))
        return carrying(total, given)
