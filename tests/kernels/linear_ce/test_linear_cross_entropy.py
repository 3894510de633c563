"""Linear cross-entropy: panels against full logits."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from bigssl_kernels import linear_cross_entropy
from bigssl_kernels.linear_ce import chunked, panels

OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 1e-2},
    {"softcap": 3.0},
    {"label_smoothing": 0.2, "z_loss": 1e-3, "softcap": 5.0},
]
LOW = [torch.float32, torch.bfloat16, torch.float16]


PANELS = (1 << 22, 600)  # bytes: one, or many


@pytest.fixture(autouse=True)
def narrow_slices(monkeypatch):
    monkeypatch.setattr(chunked, "NARROWEST", 7)


def arguments(random, tokens, width, classes, dtype=torch.float64):
    inputs = {"hidden": random(tokens, width), "weight": random(classes, width) / width**0.5, "bias": random(classes)}
    return {name: value.to(dtype) for name, value in inputs.items()}


def some_labels(tokens, classes, share=0.4):
    generator = torch.Generator().manual_seed(tokens)
    labels = torch.randint(0, classes, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < share] = -100
    if tokens > 2:
        labels[0], labels[1] = 0, classes - 1
    return labels


def plain(hidden, weight, bias, labels, **options):
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_equals_the_reference_in_float64(run, close, random, monkeypatch, options, reduction):
    for tokens, width, classes in [(0, 4, 5), (1, 3, 2), (47, 31, 123), (252, 13, 57)]:
        inputs, labels = arguments(random, tokens, width, classes), some_labels(tokens, classes)
        loss = functools.partial(linear_cross_entropy, labels=labels, reduction=reduction, **options)
        upstream = random(tokens) if reduction == "none" else None
        truth = run(functools.partial(loss, impl="reference"), inputs, upstream)
        for panel in PANELS:
            monkeypatch.setattr(chunked, "PANEL", panel)
            close(run(functools.partial(loss, impl="torch"), inputs, upstream), truth, 1e-11)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_equals_torch(random, smoothing, impl, reduction):
    inputs, labels = arguments(random, 47, 31, 123), some_labels(47, 123)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    expected = F.cross_entropy(F.linear(inputs["hidden"], inputs["weight"], inputs["bias"]), labels, **options)
    torch.testing.assert_close(linear_cross_entropy(**inputs, labels=labels, impl=impl, **options), expected)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("share", [0.0, 0.85])
def test_is_as_good_as_plain_torch(run, as_good, random, monkeypatch, dtype, share):
    inputs, labels = arguments(random, 252, 64, 507, dtype), some_labels(252, 507, share)
    wide = {name: value.double() for name, value in inputs.items()}
    truth = run(functools.partial(linear_cross_entropy, labels=labels, impl="reference"), wide)
    usual = run(functools.partial(plain, labels=labels), inputs)
    for panel in PANELS:
        monkeypatch.setattr(chunked, "PANEL", panel)
        actual = run(functools.partial(linear_cross_entropy, labels=labels, impl="torch"), inputs)
        as_good(actual, usual, truth, 4 * torch.finfo(dtype).eps)


def test_no_kept_row_costs_nothing(run, random):
    inputs, labels = arguments(random, 6, 4, 9), torch.full((6,), -100)
    for impl in ("reference", "torch"):
        result = run(functools.partial(linear_cross_entropy, labels=labels, impl=impl), inputs)
        assert all((value == 0).all() for value in result.values())


def test_everything_equal_costs_the_log_of_the_classes():
    loss = linear_cross_entropy(torch.zeros(5, 4), torch.ones(30_522, 4), torch.arange(5), impl="torch")
    assert loss.item() == pytest.approx(math.log(30_522), abs=1e-4)


def test_huge_logits(run, close, random):
    inputs, labels = arguments(random, 20, 8, 50), some_labels(20, 50)
    inputs["weight"] *= 1e4
    truth, actual = (
        run(functools.partial(linear_cross_entropy, labels=labels, impl=impl), inputs)
        for impl in ("reference", "torch")
    )
    close(actual, truth, 1e-9)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_frozen_inputs_get_no_gradient(random, frozen):
    inputs, labels = arguments(random, 9, 4, 7), some_labels(9, 7)
    for name, value in inputs.items():
        value.requires_grad_(name != frozen)
    linear_cross_entropy(**inputs, labels=labels, impl="torch").backward()
    assert {name for name, value in inputs.items() if value.grad is None} == {frozen}


def test_nan_in_gives_nan_out(random):
    inputs, labels = arguments(random, 9, 4, 7), some_labels(9, 7)
    inputs["weight"][3, 3] = float("nan")
    assert linear_cross_entropy(**inputs, labels=labels, impl="torch").isnan()


def test_autocast_takes_mixed_dtypes(random):
    inputs, labels = arguments(random, 40, 16, 50, torch.float32), some_labels(40, 50)
    exact = linear_cross_entropy(**inputs, labels=labels, impl="torch")
    inputs["hidden"] = inputs["hidden"].bfloat16()
    for value in inputs.values():
        value.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(**inputs, labels=labels, impl="torch")
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert all(value.grad.dtype == value.dtype for value in inputs.values())


def test_compiles_in_one_graph(run, close, random):
    inputs, labels = arguments(random, 47, 31, 123), some_labels(47, 123)
    loss = functools.partial(linear_cross_entropy, labels=labels, impl="torch")
    close(run(torch.compile(loss, fullgraph=True, backend="aot_eager"), inputs), run(loss, inputs), 1e-12)


@pytest.mark.parametrize("classes", [127, 128, 507])
def test_nothing_undefined_lies_between_rows_of_logits(classes):
    """AMX multiplies what is behind an odd last column by 0, which is NaN of a NaN."""
    room = panels.room_for(torch.empty(1, dtype=torch.bfloat16), 3, classes)
    stride = room.stride(0)
    assert stride % panels.ALIGNED == 0 and not room.as_strided((3, stride), (stride, 1))[:, classes:].any()
