"""LAMB and LARS whose layer norms stay exact under ZeRO.

ZeRO hands an optimizer flat slices, of many parameters end to end. A trust ratio of a slice is silently wrong, so the
squared norms are taken of each layer's piece of it and summed over ranks, all layers in one vector, before the ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigssl import distributed
from bigssl.engine.layout import Layout


class _Pieces(NamedTuple):
    """What a flat tensor has of which layers. numbers: int64, of the layers; places: [start, stop) of each."""

    numbers: Tensor
    places: list[tuple[int, int]]

    def of(self, flat: Tensor) -> list[Tensor]:
        return [flat[start:stop] for start, stop in self.places]


class Layerwise(torch.optim.Optimizer):
    """Scales each layer's update by ‖w‖ / ‖update‖. A parameter is a layer, unless `see_slices` says what it holds."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self._pieces: dict[Tensor, _Pieces] = {}
        self._layers = 0

    def see_slices(self, layout: Layout, flats: Sequence[Tensor], rank: int) -> None:
        """From now on each parameter is one of ZeRO's `flats` (stages 1 to 3), in which `layout` says what stands."""
        numbers = {name: n for n, name in enumerate(name for flat in layout.flats for name in flat.names)}
        self._layers = len(numbers)
        for flat, tensor in zip(layout.flats, flats, strict=True):
            pieces = list(layout.pieces(flat, rank))
            found = torch.tensor([numbers[piece.name] for piece in pieces], dtype=torch.int64, device=tensor.device)
            self._pieces[tensor] = _Pieces(found, [(p.at, p.at + p.stop - p.start) for p in pieces])

    def _directions(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The unscaled updates of a group, weight decay included; updates the state."""
        raise NotImplementedError

    def _finish(self, params: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        torch._foreach_add_(params, updates, alpha=-group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        work = []
        for group in self.param_groups:
            if params := [p for p in group["params"] if p.grad is not None]:
                work.append((params, self._directions(params, group), group))
        adapted = [(params, updates) for params, updates, group in work if group["adapt"]]
        if adapted:
            self._scale([p for params, _ in adapted for p in params], [u for _, updates in adapted for u in updates])
        for params, updates, group in work:
            self._finish(params, updates, group)

    def _scale(self, params: list[Tensor], updates: list[Tensor]) -> None:
        """Multiplies the update of each layer by ‖w‖ / ‖update‖, by 1 where either is zero. Collective with slices."""
        if not self._pieces:
            ratios = _trust(_squares(params), _squares(updates))
            torch._foreach_mul_(updates, list(ratios.unbind()))
            return
        pieces = [self._pieces[param] for param in params]
        numbers = torch.cat([each.numbers for each in pieces])
        weights, changes = ([piece for each, flat in zip(pieces, flats, strict=True) for piece in each.of(flat)]
                            for flats in (params, updates))  # fmt: skip
        squares = params[0].new_zeros(2, self._layers)
        if weights:
            squares[:, numbers] = torch.stack([_squares(weights), _squares(changes)])
        distributed.all_reduce_sum(squares)
        if changes:
            torch._foreach_mul_(changes, list(_trust(*squares)[numbers].unbind()))


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [param.grad for param in params if param.grad is not None]


def _squares(tensors: list[Tensor]) -> Tensor:
    """[layers] squared norms."""
    return torch.stack(torch._foreach_norm(tensors)).square()


def _trust(weight: Tensor, update: Tensor) -> Tensor:
    """[layers] ‖w‖ / ‖update‖ of squared norms, 1 where either is zero."""
    return torch.where((weight > 0) & (update > 0), (weight / update).sqrt(), torch.ones_like(weight))


class Lamb(Layerwise):
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
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": True})

    def _directions(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        states, grads = [self.state[param] for param in params], _gradients(params)
        for param, state in zip(params, states, strict=True):
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
            state["step"] += 1
        beta1, beta2 = group["betas"]
        steps = [float(state["step"]) for state in states]
        means, squares = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        denominators = torch._foreach_div(squares, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(means, [1 - beta1**step for step in steps])
        torch._foreach_div_(updates, denominators)
        torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        return list(updates)


class Lars(Layerwise):
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
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    def _directions(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        return list(torch._foreach_add(_gradients(params), params, alpha=group["weight_decay"]))

    def _finish(self, params: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[param] for param in params]
        for param, state in zip(params, states, strict=True):
            if not state:
                state["momentum_buffer"] = torch.zeros_like(param)
        velocities = [state["momentum_buffer"] for state in states]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates, alpha=group["trust"] if group["adapt"] else 1.0)
        torch._foreach_add_(params, velocities, alpha=-group["lr"])
