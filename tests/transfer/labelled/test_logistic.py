"""Logistic and ridge regression against scikit-learn, on pictures of the demo and on made features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

import bigssl
from bigssl.data.errors import DataError
from bigssl.data.shards.index import DatasetIndex
from bigssl.transfer.features import column, samples_at, view_batches
from bigssl.transfer.inputs import ImageInput
from bigssl.transfer.knn import encode_labels
from bigssl.transfer.labelled import logistic
from bigssl.transfer.labelled.logistic import fit_logistic, fit_ridge

EMOJI = Path(bigssl.__file__).parent / "demo" / "emoji" / "train"


@pytest.fixture(scope="module")
def pictures() -> tuple[Tensor, Tensor]:
    """float32 [300, 48], int64 [300]: pixels at 4 x 4, and the category of each."""
    index = DatasetIndex.load(EMOJI)
    views = list(view_batches(samples_at(index, range(0, 1500, 5)), ImageInput(4), batch=300))
    labels, _ = encode_labels(column(views[0].keys, views[0].meta, "category"))
    return views[0].arrays["image"].flatten(1).float() / 255, labels[0]


def truth(x: Tensor, y: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    fitted = LogisticRegression(C=1 / l2, tol=1e-10, solver="newton-cholesky", max_iter=500).fit(x.double().numpy(), y)
    return torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)


def objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, l2: float) -> float:
    logits = x.double() @ weight.double().T + bias.double()
    return float(F.cross_entropy(logits, y, reduction="sum") + l2 / 2 * weight.double().square().sum())


@pytest.mark.parametrize("count, l2", [(300, 1.0), (300, 0.01), (40, 0.1)], ids=["tall", "tall, weak", "wide"])
def test_classes_are_those_of_scikit_learn(pictures: tuple[Tensor, Tensor], count: int, l2: float) -> None:
    """Coefficients, loss and predictions, with more and fewer rows than features, which have a mean far from zero."""
    x, y = pictures[0][:count] + 3, pictures[1][:count]
    weight, bias = truth(x, y, l2)
    found = fit_logistic(x, y, l2=[l2])
    assert found.converged and found.l2 == l2
    least = objective(x, y, weight, bias, l2)
    assert objective(x, y, found.weight, found.bias, l2) - least < 2e-5 * least
    assert (found.weight - weight).norm() < 0.01 * weight.norm()
    asked = pictures[0] + 3
    assert (found(asked).argmax(1) == (asked.double() @ weight.T + bias).argmax(1)).float().mean() > 0.99


def test_two_classes_are_one_sigmoid_as_in_scikit_learn(pictures: tuple[Tensor, Tensor]) -> None:
    """A softmax of two would be penalised half as much. The classes are 1 and 4 of 6."""
    x, of = pictures
    high = of % 2 == 0
    weight, bias = truth(x, high.long(), 0.5)
    found = fit_logistic(x, torch.where(high, 4, 1), l2=[0.5], classes=6)
    assert (found.weight[4] - found.weight[1] - weight[0]).norm() < 0.01 * weight.norm()
    assert abs(found.bias[4] - found.bias[1] - bias[0]) < 0.02
    assert set(found(x).argmax(1).tolist()) == {1, 4}


def test_labels_that_are_independent_are_regressions_each(pictures: tuple[Tensor, Tensor]) -> None:
    """As one by one; a label that all rows have is always found, one that none has never."""
    x, of = pictures
    y = torch.stack([of == 0, of < 4, torch.ones_like(of, dtype=torch.bool), torch.zeros_like(of) > 0], 1)
    found = fit_logistic(x, y, l2=[0.3])
    for at in (0, 1):
        weight, bias = truth(x, y[:, at].long(), 0.3)
        assert (found.weight[at] - weight[0]).norm() < 0.01 * weight.norm()
        assert abs(found.bias[at] - bias[0]) < 0.02 * (1 + abs(bias[0]))
    assert (found(x)[:, 2] > 0).all() and (found(x)[:, 3] < 0).all()


def test_the_strength_is_the_one_of_least_loss_on_held_out_rows(pictures: tuple[Tensor, Tensor]) -> None:
    """Chosen by models of the other rows alone, then fitted to all. A class that only held-out rows have does not
    matter for the choice, and is known in the end."""
    x, y = pictures[0], pictures[1].clone()
    valid = torch.arange(0, len(x), 4)
    y[valid[:3]] = 20
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[valid] = False
    strengths = [1000.0, 30.0, 1.0, 0.03, 0.001]
    losses = []
    for strength in strengths:
        model = fit_logistic(x[rest], y[rest], l2=[strength], classes=21)
        losses.append(float(F.cross_entropy(model(x[valid[3:]]), y[valid[3:]])))
    best = strengths[int(np.argmin(losses))]
    assert best not in (1000.0, 0.001)  # else nothing is chosen
    found, whole = fit_logistic(x, y, l2=strengths, valid=valid), fit_logistic(x, y, l2=[best])
    assert found.l2 == best and len(found.bias) == 21
    assert (found.weight - whole.weight).norm() < 0.02 * whole.weight.norm()


def test_one_class_alone_is_always_predicted() -> None:
    found = fit_logistic(torch.randn(6, 3), torch.full((6,), 2), l2=[1.0, 2.0], classes=4, valid=torch.tensor([0]))
    assert found(torch.randn(5, 3)).argmax(1).tolist() == [2] * 5 and not found.weight.any()


@pytest.mark.parametrize("count", [300, 40])
def test_ridge_is_that_of_scikit_learn(pictures: tuple[Tensor, Tensor], count: int, monkeypatch: Any) -> None:
    """Also where the features are too many for their principal directions."""
    x = pictures[0][:count] + 3
    y = torch.stack([x[:, 5] * 3 + x[:, 7], pictures[1][:count].float()], 1)
    truth = Ridge(alpha=0.2, solver="svd").fit(x.double().numpy(), y.double().numpy())
    for most in (logistic.EIGEN, 20):
        monkeypatch.setattr(logistic, "EIGEN", most)
        found = fit_ridge(x, y, l2=[0.2])
        assert np.allclose(found.weight, truth.coef_, atol=2e-3)
        assert np.allclose(found(x), truth.predict(x.double().numpy()), atol=2e-3)
    assert fit_ridge(x, y[:, :1], l2=[1e6, 0.2], valid=torch.arange(20)).l2 == 0.2


def test_many_features_are_fitted_without_their_principal_directions(
    pictures: tuple[Tensor, Tensor], monkeypatch: Any
) -> None:
    monkeypatch.setattr(logistic, "EIGEN", 20)
    x, y = pictures
    weight, bias = truth(x, y, 1.0)
    found = fit_logistic(x, y, l2=[1.0])
    least = objective(x, y, weight, bias, 1.0)
    assert found.converged and objective(x, y, found.weight, found.bias, 1.0) - least < 1e-4 * least


@pytest.mark.parametrize("l2, valid", [([], None), ([0.0], None), ([1.0, 2.0], None), ([1.0, 2.0], range(6))])
def test_strengths_that_make_no_sense_are_refused(l2: list[float], valid: Any) -> None:
    x, rows = torch.randn(6, 3), None if valid is None else torch.tensor(list(valid))
    with pytest.raises(ValueError, match="allowed: "):
        fit_logistic(x, torch.tensor([0, 1, 0, 1, 0, 1]), l2=l2, valid=rows)


@pytest.mark.parametrize("fit", [fit_logistic, fit_ridge])
def test_features_that_are_no_numbers_are_named(fit: Any) -> None:
    x = torch.randn(6, 3)
    x[4, 1] = -torch.inf
    with pytest.raises(DataError, match="1 of 6 rows of features"):
        fit(x, torch.tensor([0, 1, 0, 1, 0, 1]) if fit is fit_logistic else x[:, :1], l2=[1.0])
