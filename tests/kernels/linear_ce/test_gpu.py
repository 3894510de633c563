"""On a CUDA device: the compiled linear cross-entropy kernels against float64, without a sync, within bounds."""

import functools

import pytest
import torch

from bigssl_kernels import explain, linear_cross_entropy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def problem(tokens, width, classes, dtype, share=0.15):
    generator = torch.Generator().manual_seed(tokens)
    hidden, weight = (torch.randn(rows, width, generator=generator) for rows in (tokens, classes))
    labels = torch.randint(classes, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) > share] = -100
    inputs = {"hidden": hidden, "weight": weight / width**0.5}
    return {name: value.to("cuda", dtype) for name, value in inputs.items()}, labels.cuda()


@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(47, 31, 123), (1024, 768, 30_522), (4096, 256, 50_257)])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 30.0}], ids=str)
def test_is_right(run, close, impl, dtype, size, options):
    inputs, labels = problem(*size, dtype)
    loss = functools.partial(linear_cross_entropy, labels=labels, **options)
    truth = run(functools.partial(loss, impl="reference"), {name: value.double() for name, value in inputs.items()})
    close(run(functools.partial(loss, impl=impl), inputs), truth, 1e-4 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_host_never_waits(reduction):
    inputs, labels = problem(1024, 256, 30_522, torch.bfloat16)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    loss = functools.partial(linear_cross_entropy, labels=labels, reduction=reduction, impl="triton")
    loss(**leaves).sum().backward()  # compiled before the check begins
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(**leaves).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_two_runs_agree_to_the_bit(run):
    inputs, labels = problem(3000, 768, 30_522, torch.bfloat16)
    first, second = (run(functools.partial(linear_cross_entropy, labels=labels), inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("size", [(16_384, 1024, 128_256), (32_768, 4096, 30_522)])
def test_memory_and_choice(size, reduction):
    inputs, labels = problem(*size, torch.bfloat16)
    assert explain(linear_cross_entropy, **inputs, labels=labels).startswith("linear_cross_entropy: triton")
    leaves = [value.requires_grad_() for value in inputs.values()]
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    linear_cross_entropy(*leaves, labels, reduction=reduction).sum().backward()
    gradients = sum(value.numel() * value.element_size() for value in leaves)
    assert torch.cuda.max_memory_allocated() - before - gradients <= 256 << 20


def test_a_label_outside_is_nan_unless_debugging(monkeypatch):
    inputs, labels = problem(64, 32, 50, torch.float32, share=1.0)
    labels[5] = 50
    assert linear_cross_entropy(**inputs, labels=labels).isnan()
    monkeypatch.setenv("BIGSSL_KERNELS_DEBUG", "1")
    with pytest.raises(ValueError, match=r"labels\[5\] is 50; allowed are 0 to 49"):
        linear_cross_entropy(**inputs, labels=labels)
