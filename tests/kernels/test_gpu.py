"""On a CUDA device: the compiled Triton kernels and the torch form against float64, memory, determinism."""

import functools

import pytest
import torch

from bigssl_kernels import clip_loss, explain, info_nce, nt_xent, sigmoid_loss, sup_con

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LOSSES = [nt_xent, clip_loss, info_nce, sup_con, sigmoid_loss]


@pytest.fixture
def pair():
    def draw(count, dim, dtype=torch.float32):
        generator = torch.Generator().manual_seed(count)
        first, second = (torch.randn(count, dim, generator=generator).to("cuda", dtype) for _ in range(2))
        return {"first": first, "second": second, "scale": torch.tensor(10.0, device="cuda")}

    return draw


def call(loss, impl, first, second, scale, **options):
    """Any loss of the family on two matrices and a scale."""
    if loss is nt_xent:
        return loss(first, second, 1 / scale, impl=impl, **options)
    if loss is info_nce:
        return loss(first, first.roll(1, 0), second, 1 / scale, impl=impl, **options)
    if loss is sup_con:
        ids = torch.arange(len(first), device=first.device) * 7 % (len(first) // 3 + 1)
        return loss(first + second, ids, 1 / scale, impl=impl, **options)
    if loss is sigmoid_loss:
        return loss(first, second, scale, -scale, impl=impl)
    return loss(first, second, scale, impl=impl, **options)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(2, 8), (129, 40), (1000, 128), (777, 200), (2048, 256), (515, 1000)])
def test_is_right(run, close, pair, loss, impl, dtype, size):
    inputs = pair(*size, dtype)
    truth = run(functools.partial(call, loss, "reference"), {name: value.double() for name, value in inputs.items()})
    close(run(functools.partial(call, loss, impl), inputs), truth, 1e-4 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("loss", LOSSES[:4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_carry_their_own_weights(run, close, pair, loss, dtype):
    inputs, rows = pair(300, 96, dtype), 600 if loss is nt_xent else 300
    upstream = torch.randn(rows, generator=torch.Generator().manual_seed(0)).cuda()
    wide = {name: value.double() for name, value in inputs.items()}
    truth = run(functools.partial(call, loss, "reference", reduction="none"), wide, upstream)
    found = run(functools.partial(call, loss, "triton", reduction="none"), inputs, upstream)
    close(found, truth, 1e-4 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("loss", LOSSES)
def test_two_runs_agree_to_the_bit(run, pair, loss):
    inputs = pair(3000, 128, torch.bfloat16)
    first, second = (run(functools.partial(call, loss, "triton"), inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_does_not_reach_inside(run, close, pair, loss):
    inputs = pair(300, 64)
    plain = run(functools.partial(call, loss, "triton"), inputs)

    def under_autocast(**given):
        with torch.autocast("cuda", torch.bfloat16):
            return call(loss, "triton", **given)

    close(run(under_autocast, inputs), plain, 3e-2)


def test_triton_is_what_runs(pair):
    inputs = pair(10, 8)
    assert explain(nt_xent, inputs["first"], inputs["second"]).startswith("nt_xent: triton")


def test_memory_is_linear(pair):
    inputs = pair(32768, 128, torch.bfloat16)
    leaves = [inputs["first"].requires_grad_(), inputs["second"].requires_grad_()]
    nt_xent(*leaves).backward()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    nt_xent(*leaves).backward()
    rows = 2 * 32768
    assert torch.cuda.max_memory_allocated() - before < 32 * rows * 128 * 2  # the matrix of logits: 8192 times that row
