"""Linear models of frozen features: logistic regression and ridge regression, with the strength of the penalty chosen
on held-out rows.

Both are solved in the principal directions of the features. The penalty does not see a rotation, and the intercept,
which is not penalised, takes the mean: it is the same optimum. In these directions the curvature of the loss is nearly
diagonal, so a scaling of each makes the problem round, and L-BFGS needs tens of passes in place of thousands. Sums over
rows are float32 by BLAS; what they add up to, and the unknowns, are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

EIGEN = 2048  # directions at most that are worth their computation: above it each feature is its own
PASSES, ROUNDS = 50, 20
PRECISION = 1e-6  # share of the loss by which it may exceed its minimum
FLOOR = 1e-3  # mean loss below which float32 hardly tells more


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


def fit_logistic(
    x: Tensor, y: Tensor, *, l2: Sequence[float], classes: int | None = None, valid: Tensor | None = None
) -> Linear:
    """Minimum of sum of losses + l2/2 · ‖W‖², the objective of scikit-learn's `LogisticRegression(C=1/l2)`.

    Args:
        x: float [N, D], on the device to compute on.
        y: int64 [N], a class of each: softmax (of two classes, as there, one sigmoid); or bool [N, C], labels that are
            independent of each other: a sigmoid each.
        l2: strengths > 0 of the penalty, among which `valid` chooses.
        classes: how many there are (default: as many as `y` has); those that no row has are never predicted.
        valid: int64 numbers of the rows on which the mean loss of a model of the others decides; the chosen strength is
            then fitted to all rows. To be left out where there is one strength.
    Raises:
        ValueError: of the arguments, and where no row is left to learn from.
    """
    if y.dtype == torch.bool:
        return _chosen(x, y, l2, valid, lambda rows, of: _Path(rows, _Sigmoids(of)))
    count = classes or int(y.max()) + 1
    return _chosen(x, y, l2, valid, lambda rows, of: _Path(rows, _classes_loss(of, count)))


def fit_ridge(x: Tensor, y: Tensor, *, l2: Sequence[float], valid: Tensor | None = None) -> Linear:
    """Minimum of ‖x Wᵀ + b - y‖² + l2 · ‖W‖², in closed form: scikit-learn's `Ridge(alpha=l2)`. Arguments as of
    `fit_logistic`, y: float [N, C]."""
    return _chosen(x, y.float(), l2, valid, _Ridge)


def _chosen(x: Tensor, y: Tensor, l2: Sequence[float], valid: Tensor | None, learner: Callable[..., _Path | _Ridge]
            ) -> Linear:
    strengths = sorted(set(l2), reverse=True)
    if not strengths or strengths[-1] <= 0 or (valid is None and len(strengths) > 1):
        count = "no" if valid is None else len(valid)
        raise ValueError(f"l2 {list(l2)}, {count} rows to choose on; allowed: strengths above 0, and rows to choose on "
                         "where there are several")  # fmt: skip
    if valid is None or len(strengths) == 1:
        return learner(x, y).at(strengths[0])
    held = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    held[valid.to(x.device)] = True
    if held.all() or not held.any():
        raise ValueError(f"{int(held.sum())} of {len(x)} rows to choose on; allowed: some, and not all")
    rest = learner(x[~held], y[~held])
    path: list[Linear] = []
    for strength in strengths:
        path.append(rest.at(strength, path[-1] if path else None))
    best = min(path, key=lambda each: rest.loss(each(x[held]), y[held]))
    return learner(x, y).at(best.l2, best)


@dataclass(frozen=True)
class _Directions:
    """Features without their mean, along orthonormal directions. rows: float32 [N, R]. basis: float32 [D, R], None
    where each feature is its own. energy: float64 [R], sums of squares."""

    rows: Tensor
    mean: Tensor
    basis: Tensor | None
    energy: Tensor

    @classmethod
    def of(cls, x: Tensor) -> _Directions:
        mean = x.double().mean(0)
        rows = x.float() - mean.float()
        mean = mean.float()
        if min(rows.shape) > EIGEN:
            return cls(rows, mean, None, rows.square().sum(0).double())
        wide = rows.shape[1] > len(rows)
        energy, vectors = torch.linalg.eigh(_gram(rows.T.double() if wide else rows))
        if wide:  # the span of the rows, in which the optimum lies
            kept = energy > energy[-1].clamp(min=1e-30) * 1e-10  # the rest is rounding
            energy, vectors = energy[kept], rows.T.double() @ (vectors[:, kept] / energy[kept].sqrt())
        basis = vectors.float()
        return cls(rows @ basis, mean, basis, energy.clamp(min=0))

    def back(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """(float32 [C, D], [C]) for features as they were, of float64 [R, C] and [C]."""
        whole = weight if self.basis is None else self.basis.double() @ weight
        return whole.T.float().contiguous(), (bias - self.mean.double() @ whole).float()

    def there(self, model: Linear) -> tuple[Tensor, Tensor]:
        """The inverse of `back`, of a model whose weights lie in these directions (or else their part in them)."""
        whole = model.weight.T.double()
        weight = whole if self.basis is None else self.basis.double().T @ whole
        return weight, model.bias.double() + self.mean.double() @ whole


def _gram(rows: Tensor) -> Tensor:
    """float64 [D, D] of [N, D]: sums over few rows at a time, so that no double of all of them is held."""
    found = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in rows.split(8192):
        found += (part.T @ part).double()
    return found


class _Sigmoids:
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


class _Softmax:
    """Losses of classes int64 [N]; of those that no row has, the bias is -inf. Otherwise as `_Sigmoids`."""

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


class _Two(_Sigmoids):
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


def _classes_loss(y: Tensor, count: int) -> _Softmax | _Two:
    seen = y.unique().tolist()
    return _Two(y, seen[0], seen[1], count) if len(seen) == 2 else _Softmax(y, count)


class _Path:
    """Logistic regressions of the same rows at one strength after another."""

    def __init__(self, x: Tensor, losses: _Sigmoids | _Softmax) -> None:
        self._losses, self._x = losses, _Directions.of(x)

    def at(self, l2: float, start: Linear | None = None) -> Linear:
        """The optimum; `start`: a model near to it."""
        losses, device = self._losses, self._x.rows.device
        odds = torch.logit(losses.frequency, eps=1e-12)
        model = torch.cat([odds.new_zeros(len(self._x.energy), len(odds)), odds[None]])
        if start is not None:  # which knows nothing of classes that it had no row of
            weight, bias = self._x.there(losses.columns(start))
            model = torch.where(bias.isfinite(), torch.cat([weight, bias[None]]), model)
        strength = torch.full((len(model), 1), l2, dtype=torch.float64, device=device)
        strength[-1] = 0
        converged, ended = True, not model.shape[1]
        for _ in range(0 if ended else ROUNDS):
            model, converged, ended = self._nearer(model, strength)
            if ended:
                break
        weight, bias = losses.whole(*self._x.back(model[:-1], model[-1]))
        return Linear(weight, bias, l2, converged)

    def _nearer(self, model: Tensor, strength: Tensor) -> tuple[Tensor, bool, bool]:
        """Passes of L-BFGS from `model` [R + 1, columns], whose last row is the intercept; whether they came to the
        optimum, and whether more of them would not come nearer. Unknowns are scaled by the curvature at `model`: half
        the square of the gradient is then about the distance of the loss from its minimum."""
        x, losses, device = self._x.rows, self._losses, self._x.rows.device
        scale = (self._curvature(model) + strength).rsqrt()

        def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
            at = torch.from_numpy(flat).view(model.shape).to(device) * scale
            loss, slope = losses.of(self._logits(at))
            sums = (slope.T @ x).T.double()  # this way round BLAS is ten times as fast
            penalised = strength * at
            gradient = torch.cat([sums, slope.sum(0, dtype=torch.float64)[None]]) + penalised
            return float(loss + (penalised * at).sum() / 2), (gradient * scale).flatten().cpu().numpy()

        first = (model / scale).flatten().cpu().numpy()
        begin = value(first)[0]
        limit = (2 * PRECISION * max(begin, FLOOR * len(x)) / model.numel()) ** 0.5
        options = {"maxiter": PASSES, "gtol": limit, "ftol": PRECISION / 1000, "maxcor": 20, "maxls": 10}
        done = minimize(value, first, jac=True, method="L-BFGS-B", options=options)
        near = bool(abs(done.jac).max() <= 10 * limit)
        ended = done.status != 1 and (done.fun > begin / 2 or begin < FLOOR * len(x) or not near)
        return torch.from_numpy(done.x).view(model.shape).to(device) * scale, near, ended

    def _logits(self, model: Tensor) -> Tensor:
        return torch.addmm(model[-1].float(), self._x.rows, model[:-1].float())

    def _curvature(self, model: Tensor) -> Tensor:
        """float64 [R + 1, columns or 1]: the diagonal of the second derivative."""
        weights = self._losses.curvature(self._logits(model))
        found = model.new_zeros(len(model), weights.shape[1])
        for part, rows in zip(weights.split(8192), self._x.rows.split(8192), strict=True):
            found[:-1] += (part.T @ rows.square()).T.double()
        found[-1] = weights.sum(0, dtype=torch.float64)
        return found.clamp(min=1e-12 * len(self._x.rows))

    def loss(self, logits: Tensor, y: Tensor) -> float:
        """Mean over further rows."""
        return self._losses.held(logits, y)


class _Ridge:
    """Ridge regressions of the same rows."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._x, self._mean = _Directions.of(x), y.double().mean(0)
        self._products = (self._x.rows.T @ (y - self._mean.float())).double()

    def at(self, l2: float, start: Linear | None = None) -> Linear:
        if self._x.basis is not None:
            weight = self._products / (self._x.energy.unsqueeze(1) + l2)
        else:
            gram = _gram(self._x.rows)
            gram.diagonal().add_(l2)
            weight = torch.linalg.solve(gram, self._products)
        return Linear(*self._x.back(weight, self._mean), l2)

    def loss(self, values: Tensor, y: Tensor) -> float:
        return float((values - y).square().mean())
