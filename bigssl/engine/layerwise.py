"""LAMB and LARS whose layer norms stay exact under ZeRO.

ZeRO hands an optimizer flat slices of the parameters. A trust ratio computed on a slice is silently wrong, so here
every parameter is a group of its own (one tensor, or this rank's slice of it, padded with zeros: `clear_padding`) and
the squared norms are summed over ranks, all layers in one vector, before the ratio is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bigssl import distributed


class _Layerwise(torch.optim.Optimizer):
    """Scales each layer's update by ‖w‖ / ‖update‖. `sharded`: parameters are ZeRO slices spread over the ranks."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], sharded: bool) -> None:
        super().__init__(params, defaults)
        self.sharded = sharded

    def _direction(self, param: Tensor, group: dict[str, Any]) -> Tensor:
        """The unscaled update of one parameter, weight decay included; updates the state."""
        raise NotImplementedError

    def _finish(self, param: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        param.add_(update, alpha=-group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        work = [(p, g) for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not work:
            return
        updates = [self._direction(param, group) for param, group in work]
        ratios = self._trust_ratios([param for param, _ in work], updates)
        for (param, group), update, ratio in zip(work, updates, ratios, strict=True):
            adapt = group["adapt"]
            self._finish(param, update.mul_(ratio) if adapt else update, group)

    def _trust_ratios(self, params: list[Tensor], updates: list[Tensor]) -> Tensor:
        """[layers] ‖w‖ / ‖update‖, 1 where either is zero."""
        squares = torch.stack([t.float().square().sum() for t in [*params, *updates]])
        if self.sharded:
            distributed.all_reduce_sum(squares)
        weight, update = squares.sqrt().chunk(2)
        return torch.where((weight > 0) & (update > 0), weight / update, torch.ones_like(weight))


class Lamb(_Layerwise):
    """LAMB (You et al. 2020, https://arxiv.org/abs/1904.00962), algorithm 2 with bias correction, φ(z) = z.

    Groups may set `adapt=False` (norms and biases): those take the plain Adam update.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        sharded: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": True}
        super().__init__(params, defaults, sharded)

    def _direction(self, param: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        state["step"] += 1
        (beta1, beta2), step = group["betas"], float(state["step"])
        state["exp_avg"].lerp_(param.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
        denominator = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        return (state["exp_avg"] / (1 - beta1**step)).div_(denominator).add_(param, alpha=group["weight_decay"])


class Lars(_Layerwise):
    """LARS (You et al. 2017, https://arxiv.org/abs/1708.03888): SGD with momentum on trust-scaled gradients.

    v ← momentum·v + η·(‖w‖ / ‖g + wd·w‖)·(g + wd·w);  w ← w − lr·v. Groups may set `adapt=False` (norms and biases, as
    in SimCLR and BYOL): η and the norms are left out there. The papers give lr for 256 samples: times batch / 256.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 1e-3,
        sharded: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults, sharded)

    def _direction(self, param: Tensor, group: dict[str, Any]) -> Tensor:
        assert param.grad is not None
        return param.grad.add(param, alpha=group["weight_decay"])

    def _finish(self, param: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param)
        scale = group["trust"] if group["adapt"] else 1.0
        velocity = state["momentum_buffer"].mul_(group["momentum"]).add_(update, alpha=scale)
        param.add_(velocity, alpha=-group["lr"])
