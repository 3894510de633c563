"""Losses of linear models, by their logits [N, columns]; classes and labels that no row has, or that all have, have no
column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """weight: float32 [C, D]. bias: float32 [C]; -inf of a class, or a label, that no row had. l2: the penalty that was
    chosen. converged: False where L-BFGS stopped before its optimum."""

    weight: Tensor
    bias: Tensor
    l2: float
    converged: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, or values, float32 [N, C] of features [N, D] on the same device."""
        return x.float() @ self.weight.T + self.bias


class Sigmoids:
    """Losses of labels bool [N, C] that are independent. Those that all rows have, or none, need no weights: their
    bias is infinite. frequency: float64 [columns], of those that are fitted."""

    def __init__(self, y: Tensor) -> None:
        counts = y.sum(0)
        self.all, self.none = counts == len(y), counts == 0
        self.fitted = ~(self.all | self.none)
        self._y = y[:, self.fitted].float()
        self.frequency = self._y.double().mean(0)

    def of(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(loss float64 of all rows, its gradient float32 [N, columns])."""
        losses = F.binary_cross_entropy_with_logits(logits, self._y, reduction="none")
        return losses.sum(dtype=torch.float64), logits.sigmoid() - self._y

    def curvature(self, logits: Tensor) -> Tensor:
        """float32 [N, columns], or [N, 1] for all: the second derivative of each row's loss by its logits."""
        chance = logits.sigmoid()
        return chance * (1 - chance)

    def whole(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Of all labels, [C, D] and [C], from those of the columns."""
        weights = weight.new_zeros(len(self.fitted), weight.shape[1])
        biases = bias.new_full((len(self.fitted),), torch.inf)
        biases[self.none] = -torch.inf
        weights[self.fitted], biases[self.fitted] = weight, bias
        return weights, biases

    def columns(self, model: Linear) -> Linear:
        """The inverse of `whole`."""
        return Linear(model.weight[self.fitted], model.bias[self.fitted], model.l2)

    def held(self, logits: Tensor, y: Tensor) -> float:
        """Mean loss of further rows, [M, C] both, by the labels that are fitted."""
        part = logits[:, self.fitted], y[:, self.fitted].float()
        return float(F.binary_cross_entropy_with_logits(*part)) if self.fitted.any() else 0.0


class Softmax:
    """Losses of classes int64 [N]; of those that no row has, the bias is -inf. Otherwise as `Sigmoids`."""

    def __init__(self, y: Tensor, count: int) -> None:
        counts = torch.bincount(y, minlength=count)
        self.fitted = counts > 0
        self._number = self.fitted.cumsum(0) - 1
        self._y = self._number[y].unsqueeze(1)
        self.frequency = counts[self.fitted].double() / len(y)

    def of(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        logs = logits.log_softmax(1)
        slope = logs.exp().scatter_add_(1, self._y, -torch.ones_like(logs[:, :1]).expand_as(self._y))
        return -logs.gather(1, self._y).sum(dtype=torch.float64), slope

    def curvature(self, logits: Tensor) -> Tensor:
        """One for all classes: the loss does not see what is added to all of them, and a path that does not add any
        has no part in directions that the penalty alone holds."""
        return (1 - logits.softmax(1).square().sum(1, keepdim=True)) / logits.shape[1]

    def whole(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        weights = weight.new_zeros(len(self.fitted), weight.shape[1])
        biases = bias.new_full((len(self.fitted),), -torch.inf)
        weights[self.fitted], biases[self.fitted] = weight, bias
        return weights, biases

    def columns(self, model: Linear) -> Linear:
        return Linear(model.weight[self.fitted], model.bias[self.fitted], model.l2)

    def held(self, logits: Tensor, y: Tensor) -> float:
        known = self.fitted[y]
        if not known.any():
            return 0.0
        return float(F.cross_entropy(logits[known][:, self.fitted], self._number[y[known]]))


class TwoClasses(Sigmoids):
    """Losses of two classes, `low` < `high`, as one sigmoid."""

    def __init__(self, y: Tensor, low: int, high: int, count: int) -> None:
        super().__init__((y == high).unsqueeze(1))
        self._low, self._high, self._count = low, high, count

    def whole(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Half of it each: their difference, of which a softmax of two depends, is the sigmoid's logit."""
        weights, biases = weight.new_zeros(self._count, weight.shape[1]), bias.new_full((self._count,), -torch.inf)
        weights[self._low], weights[self._high] = -weight[0] / 2, weight[0] / 2
        biases[self._low], biases[self._high] = -bias[0] / 2, bias[0] / 2
        return weights, biases

    def columns(self, model: Linear) -> Linear:
        weight, bias = (each[self._high] - each[self._low] for each in (model.weight, model.bias))
        return Linear(weight.unsqueeze(0), bias.unsqueeze(0), model.l2)

    def held(self, logits: Tensor, y: Tensor) -> float:
        known = (y == self._low) | (y == self._high)
        logit = logits[known][:, self._high] - logits[known][:, self._low]
        return float(F.binary_cross_entropy_with_logits(logit, (y[known] == self._high).float())) if len(logit) else 0.0


def classes_loss(y: Tensor, count: int) -> Softmax | TwoClasses:
    """Of int64 [N], of `count` classes: softmax, or one sigmoid of two classes."""
    seen = y.unique().tolist()
    return TwoClasses(y, seen[0], seen[1], count) if len(seen) == 2 else Softmax(y, count)
