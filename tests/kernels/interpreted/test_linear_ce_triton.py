"""The linear cross-entropy kernels, interpreted: every path against the dense reference, in every dtype."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils import deterministic

from bigssl_kernels import linear_cross_entropy
from bigssl_kernels.configs import Block
from bigssl_kernels.contrastive import similarity_triton
from bigssl_kernels.linear_ce import blocks as _linear_ce_blocks
from bigssl_kernels.linear_ce import fused

OPTIONS = [
    {},
    {"label_smoothing": 0.1, "reduction": "sum"},
    {"z_loss": 1e-2, "reduction": "none"},
    {"label_smoothing": 0.2, "z_loss": 1e-3, "softcap": 5.0},
]
SIZES = [(0, 4, 5), (47, 31, 123)]
PATHS = {"all tokens in a panel": (1 << 20, 1), "panels of tokens": (1 << 14, 16), "panels of classes": (1 << 14, 1000)}


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    monkeypatch.setattr(_linear_ce_blocks, "FALLBACK", Block(32, 32, 16, 0, 4, 2))
    monkeypatch.setattr(fused, "SOFTMAX_COLS", 64)
    monkeypatch.setattr(fused, "ALIGNED", 16)


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    panel, fewest = PATHS[request.param]
    monkeypatch.setattr(fused, "PANEL", panel)
    monkeypatch.setattr(fused, "FEWEST", fewest)


def arguments(random, tokens, width, classes, dtype=torch.float32):
    inputs = {"hidden": random(tokens, width), "weight": random(classes, width) / width**0.5, "bias": random(classes)}
    return {name: value.to(dtype) for name, value in inputs.items()}


def some_labels(tokens, classes, share=0.4):
    generator = torch.Generator().manual_seed(tokens)
    labels = torch.randint(0, classes, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < share] = -100
    if tokens > 2:
        labels[0], labels[1] = 0, classes - 1
    return labels


def plain(hidden, weight, bias, labels):
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_reference(run, close, random, path, options, size):
    inputs, labels = arguments(random, *size), some_labels(size[0], size[2])
    loss = functools.partial(linear_cross_entropy, labels=labels, **options)
    upstream = random(size[0]) if options.get("reduction") == "none" else None
    truth = run(functools.partial(loss, impl="reference"), {n: v.double() for n, v in inputs.items()}, upstream)
    close(run(functools.partial(loss, impl="triton"), inputs, upstream), truth, 3e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_as_good_as_plain_torch(run, as_good, random, path, dtype):
    inputs, labels = arguments(random, 50, 20, 123, dtype), some_labels(50, 123)
    truth = run(functools.partial(linear_cross_entropy, labels=labels, impl="reference"),
                {name: value.double() for name, value in inputs.items()})  # fmt: skip
    actual = run(functools.partial(linear_cross_entropy, labels=labels, impl="triton"), inputs)
    as_good(actual, run(functools.partial(plain, labels=labels), inputs), truth, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e3])
def test_float16_survives_small_and_large_upstreams(run, random, scale):
    inputs, labels = arguments(random, 40, 16, 57, torch.float16), some_labels(40, 57)
    leaves = {name: value.clone().float().requires_grad_() for name, value in inputs.items()}
    with torch.autocast("cpu", dtype=torch.float16):
        (linear_cross_entropy(**leaves, labels=labels, impl="triton") * scale).backward()
    truth = run(functools.partial(linear_cross_entropy, labels=labels, impl="reference"), inputs)
    for name, leaf in leaves.items():
        expected = truth[f"d{name}"].float() * scale
        assert (leaf.grad - expected).abs().max() <= 1e-2 * expected.abs().max(), name


def test_details(random, path):
    inputs, labels = arguments(random, 47, 31, 123), some_labels(47, 123)
    (loss, aux), (truth, expected) = (
        linear_cross_entropy(**inputs, labels=labels, return_aux=True, impl=impl) for impl in ("triton", "reference")
    )
    torch.testing.assert_close(loss, truth)
    assert (aux.correct == expected.correct).all()
    for name in ("loss", "logsumexp", "entropy"):
        torch.testing.assert_close(getattr(aux, name), getattr(expected, name), msg=name, rtol=1e-4, atol=1e-4)


def test_a_split_of_excluded_classes_only(random, monkeypatch):
    """Beside a bias of -inf; see test_alike.py."""
    monkeypatch.setattr(similarity_triton, "_processors", lambda device: 64)
    inputs, labels, options = arguments(random, 9, 8, 320), 200 + torch.arange(9), {"return_aux": True}
    inputs["bias"][:170] = float("-inf")
    (_, aux), (_, expected) = (
        linear_cross_entropy(**inputs, labels=labels, impl=impl, **options) for impl in ("triton", "reference")
    )
    assert expected.entropy.isfinite().all()
    for name in ("loss", "logsumexp", "entropy", "correct"):
        torch.testing.assert_close(getattr(aux, name), getattr(expected, name), msg=name, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [False, True])
def test_nan_and_labels_outside(random, path, grad, monkeypatch):
    inputs, labels = arguments(random, 20, 8, 57), torch.arange(20)
    inputs["hidden"].requires_grad_(grad)
    labels[7] = 57
    monkeypatch.setattr("bigssl_kernels.linear_ce.api.checked_labels", lambda fn, labels, *_: labels)
    _, aux = linear_cross_entropy(**inputs, labels=labels, return_aux=True, impl="triton")
    assert aux.loss.isnan().nonzero().flatten().tolist() == [7]
    inputs["weight"][5, 3] = float("nan")
    assert linear_cross_entropy(**inputs, labels=labels.clamp(max=56), impl="triton").isnan()


def test_huge_logits(run, close, random, path):
    inputs, labels = arguments(random, 20, 8, 50), some_labels(20, 50)
    inputs["weight"] *= 1e4
    truth = run(functools.partial(linear_cross_entropy, labels=labels, impl="reference"), inputs)
    close(run(functools.partial(linear_cross_entropy, labels=labels, impl="triton"), inputs), truth, 1e-4)


def test_no_kept_row_costs_nothing(run, random, path):
    inputs, labels = arguments(random, 40, 4, 57), torch.full((40,), -100)
    result = run(functools.partial(linear_cross_entropy, labels=labels, impl="triton"), inputs)
    assert all((value == 0).all() for value in result.values())


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_frozen_inputs_get_no_gradient(random, path, frozen):
    inputs, labels = arguments(random, 40, 4, 57), some_labels(40, 57)
    for name, value in inputs.items():
        value.requires_grad_(name != frozen)
    linear_cross_entropy(**inputs, labels=labels, impl="triton").backward()
    assert {name for name, value in inputs.items() if value.grad is None} == {frozen}


def test_the_same_bits_every_time_and_any_strides(run, random, path):
    inputs, labels = arguments(random, 47, 20, 57), some_labels(47, 57)
    loss = functools.partial(linear_cross_entropy, labels=labels, impl="triton")
    first, second = run(loss, inputs), run(loss, inputs)
    columns = linear_cross_entropy(inputs["hidden"].T.contiguous().T, inputs["weight"].repeat(1, 2)[:, :20], labels,
                                   inputs["bias"], impl="triton")  # fmt: skip
    assert all((first[name] == second[name]).all() for name in first) and columns == first["loss"]


def test_rows_beyond_32_bit_addresses(random):
    inputs, labels = arguments(random, 3, 8, 57, torch.bfloat16), torch.tensor([5, -100, 7])
    stride = (1 << 30) + 16
    fill, deterministic.fill_uninitialized_memory = deterministic.fill_uninitialized_memory, False
    try:
        far = torch.empty(2 * stride + 8, dtype=torch.bfloat16).as_strided((3, 8), (stride, 1))
    finally:
        deterministic.fill_uninitialized_memory = fill
    far.copy_(inputs["hidden"])
    near = linear_cross_entropy(**inputs, labels=labels, impl="triton")
    assert near == linear_cross_entropy(**(inputs | {"hidden": far}), labels=labels, impl="triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_panels_of_classes_round_once(run, random, dtype, monkeypatch):
    """The gradient by hidden adds up in more bits than it has: as if one panel held all classes."""
    monkeypatch.setattr(fused, "FEWEST", 1000)
    inputs, labels = arguments(random, 40, 20, 123, dtype), some_labels(40, 123)
    loss = functools.partial(linear_cross_entropy, labels=labels, reduction="none", impl="triton")
    whole, places = run(loss, inputs), []
    monkeypatch.setattr(fused, "PANEL", 2 * 40 * 16)
    panel = fused._panel
    monkeypatch.setattr(fused, "_panel", lambda *args: (places.append(args[2]), panel(*args)))
    parts = run(loss, inputs)
    assert places == [(0, first) for first in range(0, 123, 16)]
    gap = (parts["dhidden"].double() - whole["dhidden"].double()).abs()
    assert (gap <= torch.finfo(dtype).eps * whole["dhidden"].double().abs() + 1e-4).all()
    assert (gap == 0).double().mean() > 0.9


def test_tuning_leaves_the_results_alone(run, random, path, tmp_path, monkeypatch):
    """Kernels run once for each candidate, with what came before in their outputs."""
    inputs, labels = arguments(random, 40, 20, 123, torch.bfloat16), some_labels(40, 123)
    loss = functools.partial(linear_cross_entropy, labels=labels, impl="triton")
    expected, tried = run(loss, inputs), []

    def fake(launch):
        def time(block):
            tried.append(block)
            launch(block)
            return float(block != last)  # the winner is the block that ran before

        return time

    last, other = _linear_ce_blocks.FALLBACK, Block(16, 64, 32, 0, 4, 2)
    names = ("ce_statistics", "ce_panel", "ce_product")
    monkeypatch.setattr(_linear_ce_blocks, "SHIPPED", {("sm_00", name, 2): other for name in names})
    monkeypatch.setattr(_linear_ce_blocks, "_seconds", fake)
    monkeypatch.setenv("BIGSSL_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setenv("BIGSSL_KERNELS_TUNE", "1")
    for _ in range(2):  # the second call finds the winners
        actual = run(loss, inputs)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert len(tried) >= 4 and set(tried) == {last, other}


@pytest.mark.parametrize("name", ["rows", "total", "gradient"])
def test_operator_checks(linear_ce_operators, name):
    torch.library.opcheck(*linear_ce_operators("triton", torch.float32, True)[name])
