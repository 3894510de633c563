"""The dense form of small batches on a CPU: its written-out backward, and what it leaves to autograd."""

import functools

import pytest
import torch

from bigssl_kernels import clip_loss, nt_xent
from bigssl_kernels.contrastive import dense

PAIRED = [nt_xent, clip_loss]


def inputs_of(random, loss, count, dim, scale):
    number = torch.tensor(1 / scale if loss is nt_xent else scale).double()
    names = ("view1", "view2", "temperature") if loss is nt_xent else ("image", "text", "logit_scale")
    return dict(zip(names, (random(count, dim), random(count, dim), number), strict=True))


@pytest.mark.parametrize("loss", PAIRED)
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"reduction": "sum"}, {"normalize": False}], ids=str)
def test_small_batches_equal_the_reference(run, close, random, monkeypatch, loss, options):
    monkeypatch.setattr(dense, "SMALL", 512)
    for size in ((1, 4), (7, 31), (40, 9)):
        for scale in (5.0, 100.0):  # kept powers, and the dense form that takes the maximum out
            inputs = inputs_of(random, loss, *size, scale if options.get("normalize", True) else scale / 10)
            upstream = random(size[0] * (1 + (loss is nt_xent))) if options.get("reduction") == "none" else None
            truth = run(functools.partial(loss, impl="reference", **options), inputs, upstream)
            close(run(functools.partial(loss, impl="torch", **options), inputs, upstream), truth, 1e-11)


@pytest.fixture
def small_pair(random, monkeypatch):
    """Nine pairs with a row of zeros, and the inverse of a temperature, for the dense form."""
    monkeypatch.setattr(dense, "SMALL", 512)
    first, second = random(9, 6), random(9, 6)
    first[2] = 0
    return first, second


def gradient(loss, first, second, impl="torch"):
    leaf = first.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, second, 5.0, impl=impl), leaf)[0]


@pytest.mark.parametrize("loss", PAIRED)
def test_small_batches_bear_zeros_and_nan(small_pair, loss):
    first, second = small_pair
    assert (gradient(loss, first, second)[2] == 0).all()
    first[1, 1] = float("nan")
    assert loss(first, second, 5.0, impl="torch").isnan()


@pytest.mark.parametrize("loss", PAIRED)
def test_small_batches_bear_transforms_and_autocast(small_pair, loss):
    first, second = small_pair
    truth = gradient(loss, first, second, "reference")
    torch.testing.assert_close(torch.func.grad(lambda a: loss(a, second, 5.0, impl="torch"))(first), truth)
    leaf = first.float().requires_grad_()
    value = loss(leaf, second.float(), 5.0, impl="torch")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value.backward()
    torch.testing.assert_close(leaf.grad, truth.float())


@pytest.mark.parametrize("loss", PAIRED)
def test_small_batches_can_be_differentiated_twice(small_pair, loss):
    first, second = small_pair
    ours, truth = (
        torch.autograd.functional.hessian(lambda a, impl=impl: loss(a, second[:3], 5.0, impl=impl), first[3:6])
        for impl in ("torch", "reference")
    )
    torch.testing.assert_close(ours, truth)
