"""The Triton kernels, interpreted: against the dense reference at odd sizes, in every dtype, for several blocks."""

import functools

import pytest
import torch

from bigssl_kernels import clip_loss, configs, info_nce, nt_xent, sigmoid_loss, sup_con
from bigssl_kernels.configs import Block
from bigssl_kernels.contrastive import similarity_triton

LOSSES = [nt_xent, clip_loss, info_nce, sup_con, sigmoid_loss]
BLOCKS = {
    "whole features": Block(16, 16, 64, 64, 4, 2),
    "features in parts": Block(32, 16, 16, 16, 4, 2),
    "output in parts": Block(16, 32, 64, 16, 4, 2),
}


LAUNCHES = [("whole features", 1), *((name, 64) for name in BLOCKS)]  # 64 processors: the columns are split


@pytest.fixture
def splits(monkeypatch):
    monkeypatch.setattr(similarity_triton, "_processors", lambda device: 64)


@pytest.fixture(params=LAUNCHES, ids=lambda launch: f"{launch[0]} x{launch[1]}")
def launch(request, monkeypatch):
    name, processors = request.param
    monkeypatch.setattr(configs, "FALLBACK", BLOCKS[name])
    monkeypatch.setattr(similarity_triton, "_processors", lambda device: processors)


def ids_of(count):
    return torch.randint(-3, max(1, count // 2), (count,), generator=torch.Generator().manual_seed(count))


def call(loss, impl, first, second, scale, **options):
    """Any loss of the family on two matrices and a scale."""
    if loss is nt_xent:
        return loss(first, second, 1 / scale, impl=impl, **options)
    if loss is info_nce:
        return loss(first, first.roll(1, 0), second, 1 / scale, impl=impl, **options)
    if loss is sup_con:
        return loss(first, ids_of(len(first)), 1 / scale, impl=impl, **options)
    if loss is sigmoid_loss:
        return loss(first, second, scale, -scale, impl=impl)
    return loss(first, second, scale, impl=impl, **options)


def inputs_of(random, loss, count, dim, scale, dtype):
    inputs = {"first": random(count, dim, dtype=dtype), "second": random(count, dim, dtype=dtype)}
    if loss is sup_con:
        del inputs["second"]
    return inputs | {"scale": torch.tensor(scale)}


def bound(loss, impl, **options):
    return functools.partial(call, loss, impl, **options) if loss is not sup_con else (
        lambda first, scale: call(loss, impl, first, None, scale, **options)
    )  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("size", "scale"), [((2, 3), 100.0), ((19, 33), 100.0), ((33, 40), 4.0)])
def test_equals_the_reference(run, close, random, launch, loss, size, scale):
    inputs = inputs_of(random, loss, *size, scale, torch.float32)
    truth = run(bound(loss, "reference"), {name: value.double() for name, value in inputs.items()})
    close(run(bound(loss, "triton"), inputs), truth, 1e-6 * (10 + scale))


@pytest.mark.parametrize("loss", [nt_xent, clip_loss, info_nce, sup_con])
def test_rows_carry_their_own_weights(run, close, random, launch, loss):
    inputs = inputs_of(random, loss, 23, 24, 6.0, torch.float32)
    upstream = random(46 if loss is nt_xent else 23)
    wide = {name: value.double() for name, value in inputs.items()}
    truth = run(bound(loss, "reference", reduction="none"), wide, upstream)
    close(run(bound(loss, "triton", reduction="none"), inputs, upstream), truth, 2e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(19, 17), (24, 80)])
def test_low_precision_is_as_good_as_torch(run, as_good, random, splits, loss, dtype, size):
    """float32 sums of narrow products: nearer the truth than the same chunked in torch, whose products are rounded."""
    inputs = inputs_of(random, loss, *size, 8.0, dtype)
    truth = run(bound(loss, "reference"), {name: value.double() for name, value in inputs.items()})
    plain = run(bound(loss, "torch"), inputs)
    as_good(run(bound(loss, "triton"), inputs), plain, truth, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("loss", LOSSES)
def test_two_runs_agree_to_the_bit(run, random, loss):
    inputs = inputs_of(random, loss, 70, 24, 8.0, torch.bfloat16)
    first, second = (run(bound(loss, "triton"), inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("loss", LOSSES)
def test_nan_and_zeros(run, random, loss):
    inputs = inputs_of(random, loss, 21, 9, 8.0, torch.float32)
    inputs["first"][3] = 0
    result = run(bound(loss, "triton"), inputs)
    assert all(value.isfinite().all() for value in result.values()) and (result["dfirst"][3] == 0).all()
    inputs["first"][4, 4] = float("nan")
    assert run(bound(loss, "triton"), inputs)["loss"].isnan()


def test_an_empty_queue(run, random):
    query = random(5, 6).float()
    value = info_nce(query, query, query[:0], impl="triton")
    assert value.abs() < 1e-6


# the interpreter knows no warps and stages: one of the blocks that differ in these only
SHAPES = {
    (bucket, block.rows, block.cols, block.features, block.out): (bucket, block)
    for (*_, bucket), block in configs.SHIPPED.items()
}.values()


@pytest.mark.parametrize(("bucket", "block"), sorted(SHAPES, key=str), ids=str)
def test_every_shipped_block_is_right(run, close, random, monkeypatch, bucket, block):
    monkeypatch.setattr(configs, "FALLBACK", block)
    inputs = inputs_of(random, clip_loss, 67, min(bucket, 300) - 3, 9.0, torch.float32)
    if not block.out:  # a block of the reducing kernel
        torch.testing.assert_close(call(clip_loss, "triton", **inputs), call(clip_loss, "reference", **inputs))
        return
    truth = run(bound(clip_loss, "reference"), {name: value.double() for name, value in inputs.items()})
    close(run(bound(clip_loss, "triton"), inputs), truth, 2e-5)
