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
from scipy.optimize import minimize
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.transfer.labelled.losses import Linear, Sigmoids, Softmax, classes_loss

EIGEN = 2048  # directions at most that are worth their computation: above it each feature is its own
PASSES, ROUNDS = 50, 20
PRECISION = 1e-6  # share of the loss by which it may exceed its minimum
FLOOR = 1e-3  # mean loss below which float32 hardly tells more


def fit_logistic(
    x: Tensor, y: Tensor, *, l2: Sequence[float], classes: int | None = None, valid: Tensor | None = None
) -> Linear:
    """Minimum of sum of losses + l2/2 · ‖W‖², the objective of scikit-learn's `LogisticRegression(C=1/l2)`.

    Args:
        x: float [N, D], on the device to compute on.
        y: int64 [N], a class of each: softmax (of two classes, as there, one sigmoid); or bool [N, C], labels that are
            independent of each other: a sigmoid each.
        l2: strengths > 0 of the penalty, among which `valid` chooses, from the strongest on: weaker ones are not tried
            where two after each other were worse.
        classes: how many there are (default: as many as `y` has); those that no row has are never predicted.
        valid: int64 numbers of the rows on which the mean loss of a model of the others decides; the chosen strength is
            then fitted to all rows. To be left out where there is one strength.
    Raises:
        ValueError: of the arguments, and where no row is left to learn from.
        DataError: features that are no numbers.
    """
    if y.dtype == torch.bool:
        return _chosen(x, y, l2, valid, lambda rows, of: _Path(rows, Sigmoids(of)))
    count = classes or int(y.max()) + 1
    return _chosen(x, y, l2, valid, lambda rows, of: _Path(rows, classes_loss(of, count)))


def fit_ridge(x: Tensor, y: Tensor, *, l2: Sequence[float], valid: Tensor | None = None) -> Linear:
    """Minimum of ‖x Wᵀ + b - y‖² + l2 · ‖W‖², in closed form: scikit-learn's `Ridge(alpha=l2)`. Arguments as of
    `fit_logistic`, y: float [N, C]."""
    return _chosen(x, y.float(), l2, valid, _Ridge)


def _chosen(x: Tensor, y: Tensor, l2: Sequence[float], valid: Tensor | None, learner: Callable[..., _Path | _Ridge]
            ) -> Linear:
    if not x.isfinite().all():
        raise DataError(f"{int((~x.isfinite().all(1)).sum())} of {len(x)} rows of features are not finite; look at the "
                        "network's weights, or at the columns")  # fmt: skip
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
    rest, asked, known = learner(x[~held], y[~held]), x[held], y[held]
    model: Linear | None = None
    losses: list[tuple[float, Linear]] = []
    for strength in strengths:
        model = rest.at(strength, model)
        losses.append((rest.loss(model(asked), known), model))
        if len(losses) > 2 and losses[-1][0] > losses[-2][0] > losses[-3][0]:
            break
    best = min(losses, key=lambda each: each[0])[1]
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


class _Path:
    """Logistic regressions of the same rows at one strength after another."""

    def __init__(self, x: Tensor, losses: Sigmoids | Softmax) -> None:
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
