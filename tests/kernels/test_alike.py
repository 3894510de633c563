"""What every implementation does alike at the edges of each loss; `test_interpreted.py` runs this with "triton" too."""

import functools
import os

import pytest
import torch

from bigssl_kernels import (
    clip_loss,
    info_nce,
    linear_cross_entropy,
    nt_xent,
    sharded_linear_cross_entropy,
    sigmoid_loss,
    sup_con,
)
from bigssl_kernels.contrastive import dense as _dense

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
IMPLS = ("triton",) if INTERPRETED else ("reference", "torch")
IDS, LABELS = torch.arange(5) // 2, torch.tensor([0, 3, -100, 4, 2])
LOSSES = {
    "nt_xent": lambda a, b, scale, **options: nt_xent(a, b, 1 / scale, **options),
    "clip_loss": clip_loss,
    "info_nce": lambda a, b, scale, **options: info_nce(a, a + 1, b, 1 / scale, **options),
    "sup_con": lambda a, b, scale, **options: sup_con(a + b, IDS, 1 / scale, **options),
    "sigmoid_loss": lambda a, b, scale, **options: sigmoid_loss(a, b, scale, -scale, **options),
    "linear_cross_entropy": lambda a, b, scale, **options: linear_cross_entropy(a * scale, b, LABELS, **options),
    "sharded": lambda a, b, scale, **options: sharded_linear_cross_entropy(
        a, b * scale, LABELS, classes=5, group=None, **options
    ),
}
CASES = [
    (name, impl, reduction)
    for name in LOSSES
    for impl in IMPLS
    for reduction in ("mean", "none")
    if (name, reduction) != ("sigmoid_loss", "none") and (name, impl) != ("sharded", "reference")
]
both_forms = pytest.mark.parametrize("small", [0, 512], ids=["tiles", "dense"])


class Unasked(torch.autograd.Function):
    """Passes a value on; its backward sends nothing back, as where a loss is one of several outputs."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, upstream):
        return None


def leaves(random, dtype=torch.float64, count=5):
    pair = (random(count, 3, dtype=dtype).requires_grad_() for _ in range(2))
    return *pair, torch.tensor(3.0, dtype=dtype, requires_grad=True)


def call(name, impl, reduction):
    options = {} if name == "sigmoid_loss" else {"reduction": reduction}
    return functools.partial(LOSSES[name], impl=impl, **options)


@both_forms
@pytest.mark.parametrize(("name", "impl", "reduction"), CASES)
def test_an_undefined_upstream_gradient_is_none_or_zero(random, monkeypatch, name, impl, reduction, small):
    monkeypatch.setattr(_dense, "SMALL", small)
    inputs = leaves(random, torch.float32 if impl == "triton" else torch.float64)
    loss = call(name, impl, reduction)
    Unasked.apply(loss(*inputs)).sum().backward()
    assert all(value.grad is None or not value.grad.any() for value in inputs)
    if impl != "triton":  # which has no float64
        assert torch.autograd.gradcheck(loss, inputs, check_undefined_grad=True)


SINGLE = {
    "nt_xent": LOSSES["nt_xent"],
    "clip_loss": clip_loss,
    "info_nce": lambda a, b, scale, **options: info_nce(a.expand(5, 3), b.expand(5, 3), b[:0], 1 / scale, **options),
    "sup_con": lambda a, b, scale, **options: sup_con(torch.cat([a, b]), torch.zeros(2).long(), 1 / scale, **options),
}


@both_forms
@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_single_pair_is_exactly_zero(random, monkeypatch, name, impl, small):
    monkeypatch.setattr(_dense, "SMALL", small)
    dtypes = [torch.float32, torch.float16, *([] if impl == "triton" else [torch.float64, torch.bfloat16])]
    for dtype in dtypes:
        for draw in range(10):
            inputs = leaves(random, dtype, 1)
            loss = SINGLE[name](*inputs[:2], inputs[2] * (1 + 3 * draw), impl=impl, reduction="none")
            loss.sum().backward()
            assert not any(value.any() for value in (loss, *(leaf.grad for leaf in inputs))), (dtype, draw)
    bad = torch.full((1, 3), float("nan"))
    assert SINGLE[name](bad, torch.ones(1, 3), torch.tensor(3.0), impl=impl).isnan()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"z_loss": 0.1}, {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_a_bias_of_minus_infinity_takes_a_class_away(random, impl, options, grad):
    """Loss, statistics and gradients are those without the class; under a softcap it stays, at -softcap."""
    dtype = torch.float32 if impl == "triton" else torch.float64
    hidden, weight, bias = random(5, 3, dtype=dtype), random(7, 3, dtype=dtype), random(7, dtype=dtype)
    bias[[2, 6]] = float("-inf")
    left = torch.tensor([0, 1, 3, 4, 5]) if "softcap" not in options else torch.arange(7)
    labels = torch.tensor([0, 4, 3, 1, 0])
    logits = (hidden @ weight.T + bias)[:, left].double()
    if "softcap" in options:
        logits = 3.0 * torch.tanh(logits / 3.0)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    inputs = [value.clone().requires_grad_(grad) for value in (hidden, weight, bias)]
    loss, aux = linear_cross_entropy(*inputs[:2], labels, inputs[2], return_aux=True, impl=impl, **options)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if impl == "triton" else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(aux.entropy.double(), entropy, **tolerance)
    torch.testing.assert_close(aux.logsumexp.double(), logits.logsumexp(1), **tolerance)
    if grad:
        loss.sum().backward()
        assert all(value.grad.isfinite().all() for value in inputs)
        assert "softcap" in options or not inputs[1].grad[[2, 6]].any()


@pytest.mark.parametrize("impl", IMPLS)
def test_dtypes_mix_under_autocast_only(random, impl):
    """The refusal outside: test_bad_input.py."""
    hidden, weight = random(5, 3, dtype=torch.float16), random(7, 3, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = linear_cross_entropy(hidden, weight, LABELS, impl=impl)
    loss.backward()
    truth = linear_cross_entropy(hidden.double(), weight.double(), LABELS, impl="reference")
    assert loss.item() == pytest.approx(truth.item(), rel=5e-3) and weight.grad.dtype == torch.float32


def under_autocast(loss, dtype, *inputs):
    with torch.autocast("cpu", dtype=dtype):
        return loss(*inputs, impl="triton")


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1; test_interpreted.py sets it")
@pytest.mark.parametrize("name", LOSSES)
def test_the_interpreter_as_it_comes_is_refused_bfloat16(random, name):
    """It multiplies the bits of bfloat16 as integers. float16 it knows."""
    first, second, scale = leaves(random, torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = (first.detach().to(dtype), second.detach().to(dtype), torch.tensor(3.0, dtype=dtype))
        calls = [
            lambda narrow=narrow: LOSSES[name](*narrow, impl="triton"),
            lambda dtype=dtype: under_autocast(LOSSES[name], dtype, first, second, scale),
            lambda narrow=narrow: torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")(
                *narrow, impl="triton"
            ),
        ]
        for attempt in calls:
            if dtype == torch.bfloat16:
                with pytest.raises(RuntimeError, match=r"takes bfloat16 for integers; use impl='auto' or"):
                    attempt()
            else:
                truth = LOSSES[name](*(value.double() for value in narrow), impl="torch").item()
                assert attempt().item() == pytest.approx(truth, rel=1e-2)
