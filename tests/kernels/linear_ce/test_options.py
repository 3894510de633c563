"""Linear cross-entropy beyond its plain form: weights, statistics, graphs, dtypes, strides, operators."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils import deterministic

from bigssl_kernels import explain, linear_cross_entropy
from bigssl_kernels.linear_ce import chunked

OPS = torch.ops.bigssl_kernels


@pytest.fixture
def given(random):
    """hidden [47, 31], weight [123, 31], bias, float64, and labels of which a third is ignored."""
    labels = torch.arange(47) * 7 % 123
    labels[::3], labels[1], labels[2] = -100, 0, 122
    inputs = {"hidden": random(47, 31), "weight": random(123, 31) / 31**0.5, "bias": random(123)}
    return inputs, labels


@pytest.fixture
def small_panels(monkeypatch):
    monkeypatch.setattr(chunked, "PANEL", 8 * 123 * 5)
    monkeypatch.setattr(chunked, "NARROWEST", 7)
    monkeypatch.setattr(chunked, "CHUNK", 300)


@pytest.mark.parametrize("fewest", [1, 1000], ids=["by rows", "by classes"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_token_weights(run, close, random, given, small_panels, monkeypatch, reduction, fewest):
    monkeypatch.setattr(chunked, "FEWEST", fewest)
    (inputs, labels), weights = given, torch.rand(47, dtype=torch.float64)
    weights[5] = 0

    def plain(hidden, weight, bias):
        rows = weights * F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="none")
        return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / weights[labels != -100].sum()}[reduction]

    options = {"labels": labels, "token_weights": weights, "reduction": reduction}
    upstream = random(47) if reduction == "none" else None
    truth = run(plain, inputs, upstream)
    for impl in ("torch", "reference"):
        close(run(functools.partial(linear_cross_entropy, impl=impl, **options), inputs, upstream), truth, 1e-11)


def test_weights_of_zero_give_zero(run, given):
    inputs, labels = given
    loss = functools.partial(linear_cross_entropy, labels=labels, token_weights=torch.zeros(47))
    assert all((value == 0).all() for value in run(loss, inputs).values())


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("grad", [False, True])
def test_statistics_of_tokens(given, small_panels, reduction, grad):
    inputs, labels = given
    inputs["weight"].requires_grad_(grad)
    options = {"labels": labels, "reduction": reduction, "z_loss": 0.1, "return_aux": True}
    loss, aux = linear_cross_entropy(**inputs, **options, impl="torch")
    expected_loss, expected = linear_cross_entropy(**inputs, **options, impl="reference")
    torch.testing.assert_close(loss, expected_loss)
    for name, value in aux._asdict().items():
        assert not value.requires_grad
        torch.testing.assert_close(value, getattr(expected, name), msg=name)
    logits = F.linear(inputs["hidden"], inputs["weight"], inputs["bias"])
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(aux.entropy, entropy.masked_fill(labels == -100, 0).detach())
    assert aux.correct.sum() == ((logits.argmax(1) == labels) & (labels != -100)).sum()


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_kept_graph_gives_the_same_gradient_twice(given, factor):
    inputs, labels = given
    leaves = [value.requires_grad_() for value in inputs.values()]
    loss = linear_cross_entropy(**inputs, labels=labels) * factor
    first = [grad.clone() for grad in torch.autograd.grad(loss, leaves, retain_graph=True)]
    second = torch.autograd.grad(loss, leaves)
    reference = torch.autograd.grad(linear_cross_entropy(**inputs, labels=labels, impl="reference") * factor, leaves)
    torch.testing.assert_close(first, list(second), rtol=0, atol=0)
    torch.testing.assert_close(first, list(reference))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_double_backward_is_refused(given, reduction):
    inputs, labels = given
    hidden = inputs.pop("hidden").requires_grad_()
    loss = linear_cross_entropy(hidden, **inputs, labels=labels, reduction=reduction).sum()
    with pytest.raises(RuntimeError, match="differentiated again"):
        (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
        grad.sum().backward()


def test_the_same_bits_every_time(run, given, small_panels):
    inputs, labels = given
    for reduction in ("mean", "none"):
        loss = functools.partial(linear_cross_entropy, labels=labels, reduction=reduction)
        first, second = run(loss, inputs), run(loss, inputs)
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("frozen", [("hidden",), ("weight",), ("weight", "bias")])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_frozen_inputs_cost_no_product(given, frozen, reduction):
    """Products of [t, V] with a matrix: one for the logits, once more where recomputed, one for each gradient."""
    inputs, labels = given
    for name, value in inputs.items():
        value.requires_grad_(name not in frozen)
    with torch.profiler.profile() as profile:
        linear_cross_entropy(**inputs, labels=labels, reduction=reduction).sum().backward()
    products = sum(event.count for event in profile.key_averages() if event.key == "aten::mm")
    wanted = sum(name not in frozen for name in ("hidden", "weight"))
    assert products == (1 if reduction == "mean" else 2) + wanted


@pytest.mark.parametrize("size", [(47, 123, 30_522), (252, 507, 123), (1, 31, 30_522)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_real_vocabularies(run, as_good, random, dtype, size):
    tokens, width, classes = size
    inputs = {"hidden": random(tokens, width, dtype=dtype), "weight": (random(classes, width) / width**0.5).to(dtype)}
    labels = torch.arange(tokens) * 641 % classes
    labels[-1] = classes - 1
    wide = {name: value.double() for name, value in inputs.items()}
    plain = run(lambda hidden, weight: F.cross_entropy(F.linear(hidden, weight).float(), labels), inputs)
    loss = functools.partial(linear_cross_entropy, labels=labels)
    truth = run(functools.partial(loss, impl="reference"), wide)
    as_good(run(loss, inputs), plain, truth, 2 * torch.finfo(dtype).eps)


def test_a_narrow_weight_gets_a_gradient_rounded_once(run, random, small_panels):
    """Every entry is within half a unit in the last place (and the products' own error) of the truth, however many
    panels there are."""
    weight, hidden = random(123, 31, dtype=torch.bfloat16), random(47, 31, dtype=torch.bfloat16)
    labels = torch.arange(47)
    loss = functools.partial(linear_cross_entropy, labels=labels)
    truth = run(functools.partial(loss, impl="reference"), {"hidden": hidden.double(), "weight": weight.double()})
    grad = run(loss, {"hidden": hidden, "weight": weight})["dweight"]
    assert grad.dtype == torch.bfloat16
    assert (grad.double() - truth["dweight"]).norm() <= 2**-7 * truth["dweight"].norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ignored", [-100, 3], ids=["some ignored", "none ignored"])
def test_any_strides(run, close, given, dtype, ignored):
    """With no row ignored, the hidden states are multiplied where they are."""
    inputs, labels = given
    inputs, labels = {name: value.to(dtype) for name, value in inputs.items()}, labels.where(labels != -100, ignored)
    truth = run(functools.partial(linear_cross_entropy, labels=labels), inputs)
    forms = {
        "columns": {name: value.T.contiguous().T for name, value in inputs.items() if value.dim() == 2},
        "gaps": {name: value.repeat(1, 2)[:, :31] for name, value in inputs.items() if value.dim() == 2},
    }
    for form in forms.values():
        leaves = {name: value.requires_grad_() for name, value in (inputs | form).items()}
        loss = linear_cross_entropy(**leaves, labels=labels)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        actual = {"loss": loss.detach()} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        close(actual, truth, 1e-12 if dtype == torch.float64 else 1e-2)
    same = {"hidden": inputs["hidden"].detach()[:1].expand(47, 31)}
    copied = {"hidden": same["hidden"].contiguous()}
    for reduction in ("mean", "none"):
        loss = functools.partial(linear_cross_entropy, labels=labels, reduction=reduction)
        torch.testing.assert_close(loss(**inputs | same), loss(**inputs | copied))


def test_rows_beyond_32_bit_addresses(random):
    fill, deterministic.fill_uninitialized_memory = deterministic.fill_uninitialized_memory, False
    try:
        far = torch.empty((1 << 31) + 64, dtype=torch.bfloat16).as_strided((3, 8), ((1 << 30) + 16, 1))
    finally:
        deterministic.fill_uninitialized_memory = fill
    near, weight = random(3, 8, dtype=torch.bfloat16), random(57, 8, dtype=torch.bfloat16)
    labels = torch.tensor([5, -100, 7])
    assert linear_cross_entropy(far.copy_(near), weight, labels) == linear_cross_entropy(near, weight, labels)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_compiles_in_one_graph(run, close, given, reduction):
    (inputs, labels), weights = given, torch.rand(47, dtype=torch.float64)

    def loss(hidden, weight, bias):
        value, aux = linear_cross_entropy(
            hidden, weight, labels, bias, reduction=reduction, token_weights=weights, return_aux=True
        )
        return value * 2 + aux.entropy.mean()

    close(run(torch.compile(loss, fullgraph=True, backend="aot_eager"), inputs), run(loss, inputs), 1e-12)


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_compiles_under_autocast(given, share):
    inputs, labels = given
    inputs = {name: value.float().requires_grad_() for name, value in inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(**inputs, labels=labels), linear_cross_entropy(**inputs, labels=labels))


OPERATORS = ["rows", "rows, plain", "total", "total, frozen", "labels", "gradient", "gradient, frozen"]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(linear_ce_operators, name, grad):
    table = linear_ce_operators("torch", torch.float64, grad)
    assert list(table) == OPERATORS
    torch.library.opcheck(*table[name])  # all of its checks


def test_no_operator_is_forgotten(linear_ce_operators):
    registered = {name for name in dir(OPS) if name.startswith("linear_ce_")}
    checked = {
        str(operator).split(".")[-1] for operator, _ in linear_ce_operators("torch", torch.float64, False).values()
    }
    assert checked == registered


def test_meta_tensors(given):
    inputs, labels = given
    meta = {name: value.to("meta").requires_grad_() for name, value in inputs.items()}
    loss, aux = linear_cross_entropy(**meta, labels=labels.to("meta"), return_aux=True)
    assert loss.shape == () and aux.correct.dtype == torch.bool and aux.entropy.shape == (47,)


def test_the_choice_is_explained(given):
    inputs, labels = given
    assert explain(linear_cross_entropy, **inputs, labels=labels).startswith("linear_cross_entropy: torch (")
