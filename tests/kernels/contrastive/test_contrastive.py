"""The contrastive family: the tiled form against the dense one, closed forms, symmetries."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from bigssl_kernels import clip_loss, info_nce, nt_xent, sigmoid_loss, sup_con, unit
from bigssl_kernels.contrastive import dense as _dense
from bigssl_kernels.contrastive import similarity_torch

OPTIONS = [("mean", True), ("none", True), ("mean", False), ("sum", False)]  # reduction, normalize
LOW = [torch.float32, torch.bfloat16, torch.float16]
LOSSES = [nt_xent, clip_loss, info_nce, sup_con, sigmoid_loss]
PAIRED = [nt_xent, clip_loss]


def some_ids(count):
    """Ids of which some occur once, some more often."""
    return torch.randint(-3, max(1, count // 2), (count,), generator=torch.Generator().manual_seed(count))


def arguments(random, loss, count, dim, scale=5.0):
    """Floating inputs of a loss by name."""
    number, inverse = torch.tensor(scale).double(), torch.tensor(1 / scale).double()
    first, second = random(count, dim), random(count, dim)
    if loss is nt_xent:
        return {"view1": first, "view2": second, "temperature": inverse}
    if loss is info_nce:
        return {"query": first, "positive": second, "negatives": random(3 * count - 2, dim), "temperature": inverse}
    if loss is sup_con:
        return {"embeddings": first, "temperature": inverse}
    towers = {"image": first, "text": second, "logit_scale": number}
    return towers | {"logit_bias": -number.clone()} if loss is sigmoid_loss else towers


def bind(loss, count, **options):
    """The loss with what is not differentiated filled in."""
    if loss is sup_con:
        options["ids"] = some_ids(count)
    return functools.partial(loss, **options)


def plain_nt_xent(view1, view2, temperature):
    z = F.normalize(torch.cat([view1, view2]), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(view1)))


def plain_clip(image, text, logit_scale):
    logits = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T * logit_scale
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def plain_info_nce(query, positive, negatives, temperature):
    q, p, n = (F.normalize(rows, dim=1) for rows in (query, positive, negatives))
    logits = torch.cat([(q * p).sum(1, keepdim=True), q @ n.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))


def plain_sup_con(embeddings, temperature):
    """Row by row, as in the paper."""
    z, ids, losses = F.normalize(embeddings, dim=1), some_ids(len(embeddings)), []
    for i in range(len(z)):
        others = torch.arange(len(z)) != i
        logits = z @ z[i] / temperature
        positives = logits[others & (ids == ids[i])]
        if len(positives):
            losses.append(logits[others].logsumexp(0) - positives.mean())
    return torch.stack(losses).mean() if losses else (embeddings * 0).sum() + temperature * 0


def plain_sigmoid(image, text, logit_scale, logit_bias):
    logits = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T * logit_scale + logit_bias
    sign = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
    return F.softplus(-sign * logits, threshold=80).sum() / len(image)


PLAIN = {
    nt_xent: plain_nt_xent,
    clip_loss: plain_clip,
    info_nce: plain_info_nce,
    sup_con: plain_sup_con,
    sigmoid_loss: plain_sigmoid,
}


# tile, pairs and features: one tile or many, that divide the batch or do not; test_properties.py draws 40 more
PLACES = [((512, 512), (31, 17)), ((16, 24), (1, 8)), ((16, 24), (31, 17)), ((16, 24), (129, 40))]
CASES = [(loss, *option) for loss in LOSSES for option in OPTIONS if loss is not sigmoid_loss or option[0] == "mean"]


@pytest.mark.parametrize(("loss", "reduction", "normalize"), CASES)
@pytest.mark.parametrize("scale", [3.0, 100.0])  # without and with the maximum taken out
def test_equals_the_reference_in_float64(run, close, random, monkeypatch, loss, reduction, normalize, scale):
    options = {"normalize": normalize} | ({} if loss is sigmoid_loss else {"reduction": reduction})
    for tile, size in PLACES:
        monkeypatch.setattr(similarity_torch, "CPU_TILE", tile)
        inputs = arguments(random, loss, *size, scale=scale if normalize else scale / 10)
        upstream = random(size[0] * (1 + (loss is nt_xent))) if reduction == "none" else None
        truth = run(bind(loss, size[0], impl="reference", **options), inputs, upstream)
        close(run(bind(loss, size[0], impl="torch", **options), inputs, upstream), truth, 1e-11)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [(2, 3), (33, 40)])
def test_reference_equals_the_textbook(run, close, random, loss, size):
    inputs = arguments(random, loss, *size)
    close(run(bind(loss, size[0], impl="reference"), inputs), run(PLAIN[loss], inputs), 1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(("small", "size", "scales"), [(0, (129, 40), [2.0, 100.0]), (10**6, (40, 31), [2.0, 100.0])],
                         ids=["tiles", "dense"])  # fmt: skip
def test_is_as_good_as_plain_torch(run, as_good, random, monkeypatch, loss, dtype, small, size, scales):
    monkeypatch.setattr(_dense, "SMALL", small)
    for scale in scales:
        inputs = {name: value.to(dtype) for name, value in arguments(random, loss, *size, scale=scale).items()}
        truth = run(PLAIN[loss], {name: value.double() for name, value in inputs.items()})
        actual = run(bind(loss, size[0], impl="torch"), inputs)
        assert actual["loss"].dtype == torch.float32
        # the backward reads a logsumexp rounded once: an error of eps/2 times its size, which is that of the scale
        slack = 4 * torch.finfo(dtype).eps + scale * torch.finfo(torch.float32).eps
        as_good(actual, run(PLAIN[loss], inputs), truth, slack)


IMPLS = pytest.mark.parametrize("impl", ["reference", "torch"])


@IMPLS
@pytest.mark.parametrize(("count", "temperature"), [(4, 1.0), (16, 0.1), (256, 0.01)])
def test_collapse_costs_the_log_of_the_candidates(impl, count, temperature):
    same = torch.ones(count, 8)
    near = functools.partial(pytest.approx, abs=2e-6 / temperature)
    assert nt_xent(same, same, temperature, impl=impl).item() == near(math.log(2 * count - 1))
    assert clip_loss(same, same, 1 / temperature, impl=impl).item() == near(math.log(count))
    assert info_nce(same, same, torch.ones(4096, 8), temperature, impl=impl).item() == near(math.log(4097))
    assert sup_con(same, torch.zeros(count).long(), temperature, impl=impl).item() == near(math.log(count - 1))


@IMPLS
@pytest.mark.parametrize(("count", "temperature", "value"), [(4, 0.5, 0.594438), (8, 0.1, 6.35e-4)])
def test_orthogonal_pairs(impl, count, temperature, value):
    basis = torch.eye(count)
    assert nt_xent(basis, basis, temperature, impl=impl).item() == pytest.approx(value, rel=1e-3)


@IMPLS
def test_sigmoid_of_orthogonal_pairs(impl):
    basis = torch.eye(6)  # the pair: softplus(-(10 - 10)); five others: softplus(0 - 10)
    expected = math.log(2) + 5 * math.log1p(math.exp(-10))
    assert sigmoid_loss(basis, basis, 10.0, -10.0, impl=impl).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", PAIRED)
def test_order_of_the_batch_and_of_the_views_does_not_matter(random, loss):
    first, second, scale = arguments(random, loss, 33, 9).values()
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    for a, b in ((second, first), (first[order], second[order])):
        torch.testing.assert_close(loss(a, b, scale, impl="torch"), loss(first, second, scale, impl="torch"))


def test_two_of_each_id_is_nt_xent(random):
    first, second, temperature = arguments(random, nt_xent, 33, 9).values()
    ids = torch.arange(33).repeat(2) * 10**15
    value = sup_con(torch.cat([first, second]), ids, temperature, impl="torch")
    torch.testing.assert_close(value, nt_xent(first, second, temperature, impl="torch"))


@IMPLS
@pytest.mark.parametrize("count", [1, 5])
def test_rows_without_positives_cost_nothing(run, random, impl, count):
    loss = functools.partial(sup_con, ids=torch.arange(count), impl=impl)
    assert all((value == 0).all() for value in run(loss, arguments(random, sup_con, count, 6)).values())


@pytest.mark.parametrize("loss", LOSSES)
@IMPLS
@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_a_row_of_zeros_is_harmless_and_nan_shows(run, random, loss, impl, scale):
    for dtype in LOW:
        inputs = {name: value.to(dtype) for name, value in arguments(random, loss, 5, 6, scale).items()}
        first = next(iter(inputs))
        inputs[first][2] = 0
        result = run(bind(loss, 5, impl=impl), inputs)
        assert all(value.isfinite().all() for value in result.values())
        assert (result[f"d{first}"][2] == 0).all()
        inputs[first][1, 1] = float("nan")
        assert bind(loss, 5, impl=impl)(**inputs).isnan()


@pytest.mark.parametrize("loss", LOSSES)
def test_pieces_of_rows_make_the_whole(run, close, random, monkeypatch, loss):
    inputs = arguments(random, loss, 33, 9)
    truth = run(bind(loss, 33, impl="torch"), inputs)
    monkeypatch.setattr(unit, "PIECE", 8)
    close(run(bind(loss, 33, impl="torch"), inputs), truth, 1e-13)


@pytest.mark.parametrize("loss", PAIRED)
def test_strides_do_not_matter(random, loss):
    first, second, scale = arguments(random, loss, 12, 6).values()
    wide = torch.stack([first, second], 2)
    value = loss(wide[:, :, 0], wide[:, :, 1], scale, impl="torch")
    torch.testing.assert_close(value, loss(first, second, scale, impl="torch"))
    row = first[:1].expand(12, 6)  # stride 0
    torch.testing.assert_close(loss(row, row, scale, impl="torch"), loss(row, row, scale, impl="reference"))


@pytest.mark.parametrize("loss", LOSSES)
def test_two_runs_agree_to_the_bit(run, random, loss):
    inputs = {name: value.float() for name, value in arguments(random, loss, 300, 24).items()}
    first, second = (run(bind(loss, 300, impl="torch"), inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("loss", LOSSES)
def test_only_what_requires_a_gradient_gets_one(random, loss):
    inputs = arguments(random, loss, 9, 4)
    for wanted in inputs:
        leaves = {name: value.detach().clone().requires_grad_(name == wanted) for name, value in inputs.items()}
        bind(loss, 9, impl="torch")(**leaves).backward()
        assert {name for name, leaf in leaves.items() if leaf.grad is not None} == {wanted}


@pytest.mark.parametrize("loss", PAIRED)
@pytest.mark.parametrize("kind", ["number", "double", "single element"])
def test_types_of_the_scale(random, loss, kind):
    first, second, scale = arguments(random, loss, 9, 4).values()
    first, second = first.float(), second.float()
    given = {"number": 0.2, "double": torch.tensor(0.2).double(), "single element": torch.full((1,), 0.2)}[kind]
    expected = loss(first, second, torch.tensor(0.2), impl="reference")
    torch.testing.assert_close(loss(first, second, given, impl="torch"), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_computes_in_its_dtype(random, loss):
    inputs = {name: value.float() for name, value in arguments(random, loss, 40, 16).items()}
    first = next(iter(inputs.values())).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = bind(loss, 40, impl="torch")(**inputs)
    value.backward()
    assert value.dtype == torch.float32 and first.grad.dtype == torch.float32
    exact = bind(loss, 40, impl="reference")(**inputs)
    assert value.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize("loss", LOSSES)
def test_second_derivatives_are_refused(random, loss):
    inputs = arguments(random, loss, 9, 4)
    first = next(iter(inputs.values())).requires_grad_()
    (grad,) = torch.autograd.grad(bind(loss, 9, impl="torch")(**inputs), first, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated again"):
        grad.sum().backward()
