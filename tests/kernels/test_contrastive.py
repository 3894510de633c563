"""NT-Xent and CLIP: the chunked form against the dense one, closed forms, symmetries."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from bigssl_kernels import clip_loss, nt_xent

SIZES = [(1, 8), (2, 3), (7, 31), (64, 16), (129, 40), (257, 5)]
LOW = [torch.float32, torch.bfloat16, torch.float16]


def arguments(random, loss, count, dim, scale=5.0):
    names = ("view1", "view2", "temperature") if loss is nt_xent else ("image", "text", "logit_scale")
    value = 1 / scale if loss is nt_xent else scale
    return dict(zip(names, (random(count, dim), random(count, dim), torch.tensor(value).double()), strict=True))


def plain_nt_xent(view1, view2, temperature):
    z = F.normalize(torch.cat([view1, view2]), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(view1)))


def plain_clip(image, text, logit_scale):
    logits = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T * logit_scale
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


PLAIN = {nt_xent: plain_nt_xent, clip_loss: plain_clip}


@pytest.mark.parametrize("loss", PLAIN)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_reference_in_float64(run, close, random, loss, reduction, normalize, size):
    inputs = arguments(random, loss, *size, scale=5.0 if normalize else 0.3)
    options = {"reduction": reduction, "normalize": normalize}
    upstream = random(2 * size[0] if loss is nt_xent else size[0]) if reduction == "none" else None
    truth = run(functools.partial(loss, impl="reference", **options), inputs, upstream)
    actual = run(functools.partial(loss, impl="torch", **options), inputs, upstream)
    close(actual, truth, 1e-11)


@pytest.mark.parametrize("loss", PLAIN)
@pytest.mark.parametrize("size", [(2, 3), (129, 40)])
def test_reference_equals_the_textbook(run, close, random, loss, size):
    inputs = arguments(random, loss, *size)
    close(run(functools.partial(loss, impl="reference"), inputs), run(PLAIN[loss], inputs), 1e-12)


@pytest.mark.parametrize("loss", PLAIN)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("size", [(7, 31), (129, 40)])
@pytest.mark.parametrize("scale", [2.0, 14.0, 100.0])
def test_is_as_good_as_plain_torch(run, as_good, random, loss, dtype, size, scale):
    inputs = {name: value.to(dtype) for name, value in arguments(random, loss, *size, scale=scale).items()}
    truth = run(PLAIN[loss], {name: value.double() for name, value in inputs.items()})
    actual = run(functools.partial(loss, impl="torch"), inputs)
    assert actual["loss"].dtype == torch.float32
    # the backward reads a logsumexp rounded once: an error of eps/2 times its size, which is that of the scale
    slack = 4 * torch.finfo(dtype).eps + scale * torch.finfo(torch.float32).eps
    as_good(actual, run(PLAIN[loss], inputs), truth, slack)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("count", [4, 16, 256])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_collapse_costs_the_log_of_the_candidates(impl, count, temperature):
    same = torch.ones(count, 8)
    assert nt_xent(same, same, temperature, impl=impl).item() == pytest.approx(math.log(2 * count - 1), abs=2e-5)
    assert clip_loss(same, same, 1 / temperature, impl=impl).item() == pytest.approx(math.log(count), abs=2e-5)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize(("count", "temperature", "value"), [(4, 0.5, 0.594438), (8, 0.1, 6.35e-4)])
def test_orthogonal_pairs(impl, count, temperature, value):
    basis = torch.eye(count)
    assert nt_xent(basis, basis, temperature, impl=impl).item() == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("loss", PLAIN)
def test_order_of_the_batch_and_of_the_views_does_not_matter(run, close, random, loss):
    inputs = arguments(random, loss, 33, 9)
    first, second, scale = inputs.values()
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    for a, b in ((second, first), (first[order], second[order])):
        torch.testing.assert_close(loss(a, b, scale, impl="torch"), loss(first, second, scale, impl="torch"))


@pytest.mark.parametrize("loss", PLAIN)
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_one_pair_costs_nothing(run, random, loss, impl):
    result = run(functools.partial(loss, impl=impl), arguments(random, loss, 1, 6))
    assert all(value.abs().max() < 1e-12 for value in result.values())


@pytest.mark.parametrize("loss", PLAIN)
@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("dtype", LOW)
def test_a_row_of_zeros_is_harmless(run, random, loss, impl, dtype):
    inputs = {name: value.to(dtype) for name, value in arguments(random, loss, 5, 6).items()}
    first = next(iter(inputs))
    inputs[first][2] = 0
    result = run(functools.partial(loss, impl=impl), inputs)
    assert all(value.isfinite().all() for value in result.values())
    assert (result[f"d{first}"][2] == 0).all()


@pytest.mark.parametrize("loss", PLAIN)
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_nan_in_gives_nan_out(random, loss, impl):
    first, second, scale = arguments(random, loss, 5, 6).values()
    first[1, 1] = float("nan")
    assert loss(first, second, scale, impl=impl).isnan()


@pytest.mark.parametrize("loss", PLAIN)
def test_strides_do_not_matter(run, close, random, loss):
    first, second, scale = arguments(random, loss, 12, 6).values()
    wide = torch.stack([first, second], 2)
    value = loss(wide[:, :, 0], wide[:, :, 1], scale, impl="torch")
    torch.testing.assert_close(value, loss(first, second, scale, impl="torch"))
    row = first[:1].expand(12, 6)  # stride 0
    torch.testing.assert_close(loss(row, row, scale, impl="torch"), loss(row, row, scale, impl="reference"))


@pytest.mark.parametrize("loss", PLAIN)
def test_two_runs_agree_to_the_bit(run, random, loss):
    inputs = {name: value.float() for name, value in arguments(random, loss, 300, 24).items()}
    first, second = (run(functools.partial(loss, impl="torch"), inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("loss", PLAIN)
def test_frozen_inputs_get_no_gradient(random, loss):
    first, second, scale = arguments(random, loss, 9, 4).values()
    second.requires_grad_()
    loss(first, second, scale.item(), impl="torch").backward()
    assert second.grad is not None and first.grad is None


@pytest.mark.parametrize("loss", PLAIN)
@pytest.mark.parametrize("kind", ["number", "double", "single element"])
def test_types_of_the_scale(random, loss, kind):
    first, second, scale = arguments(random, loss, 9, 4).values()
    first, second = first.float(), second.float()
    given = {"number": 0.2, "double": torch.tensor(0.2).double(), "single element": torch.full((1,), 0.2)}[kind]
    expected = loss(first, second, torch.tensor(0.2), impl="reference")
    torch.testing.assert_close(loss(first, second, given, impl="torch"), expected)


@pytest.mark.parametrize("loss", PLAIN)
def test_autocast_computes_in_its_dtype(random, loss):
    first, second, scale = (value.float() for value in arguments(random, loss, 40, 16).values())
    first.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(first, second, scale, impl="torch")
    value.backward()
    assert value.dtype == torch.float32 and first.grad.dtype == torch.float32
    narrow = loss(first.detach(), second, scale, impl="reference")
    assert value.item() == pytest.approx(narrow.item(), rel=1e-2)


@pytest.mark.parametrize("loss", PLAIN)
def test_second_derivatives_are_refused(random, loss):
    first, second, scale = arguments(random, loss, 9, 4).values()
    first.requires_grad_()
    (grad,) = torch.autograd.grad(loss(first, second, scale, impl="torch"), first, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated again"):
        grad.sum().backward()


@pytest.mark.parametrize("loss", PLAIN)
def test_compiles_in_one_graph(run, close, random, loss):
    inputs = arguments(random, loss, 21, 8)
    compiled = torch.compile(functools.partial(loss, impl="torch"), fullgraph=True, backend="aot_eager")
    close(run(compiled, inputs), run(functools.partial(loss, impl="reference"), inputs), 1e-11)
    first, second, scale = inputs.values()
    for number in (0.2, 0.3, 0.4):  # a Python number that changes becomes symbolic
        torch.testing.assert_close(
            torch.compile(loss, fullgraph=True, backend="aot_eager")(first, second, number), loss(first, second, number)
        )
    assert loss(first.to("meta"), second.to("meta"), scale.to("meta")).device.type == "meta"
