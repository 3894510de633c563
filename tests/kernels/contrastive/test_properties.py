"""Properties over random shapes and values: the tiled form equals the dense one, and what must not matter does not."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigssl_kernels import clip_loss, info_nce, nt_xent, sigmoid_loss, sup_con
from bigssl_kernels.contrastive import similarity_torch

SHAPES = {
    "count": st.integers(1, 40),
    "dim": st.integers(1, 20),
    "seed": st.integers(0, 10**6),
    "temperature": st.floats(0.01, 5.0),
    "size": st.floats(-3, 3).map(lambda power: 10.0**power),
}
calm = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(similarity_torch, "CPU_TILE", (8, 16))


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(call, *leaves):
    """(value, gradients) by the tiles and by the reference."""
    results = []
    for impl in ("torch", "reference"):
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        value = call(*inputs, impl=impl)
        results.append([value.detach(), *torch.autograd.grad(value, inputs)])
    return results


def agree(call, *leaves):
    for tiled, dense in zip(*both(call, *leaves), strict=True):
        torch.testing.assert_close(tiled, dense, rtol=1e-8, atol=1e-10 * max(1.0, dense.abs().max().item()))


@calm
@given(**SHAPES)
def test_pairs(count, dim, seed, temperature, size):
    a, b = draw(seed, 2, count, dim) * size
    number = torch.tensor(temperature).double()
    agree(nt_xent, a, b, number)
    agree(clip_loss, a, b, 1 / number)
    agree(sigmoid_loss, a, b, 1 / number, -number)


@calm
@given(**SHAPES, queue=st.integers(0, 50), classes=st.integers(1, 30))
def test_queue_and_classes(count, dim, seed, temperature, size, queue, classes):
    a, b = draw(seed, 2, count, dim) * size
    number = torch.tensor(temperature).double()
    if queue:
        agree(info_nce, a, b, draw(seed + 1, queue, dim), number)
    ids = torch.randint(-classes, classes, (count,), generator=torch.Generator().manual_seed(seed))
    agree(lambda z, t, impl: sup_con(z, ids, t, impl=impl), a, number)


@calm
@given(**SHAPES)
def test_length_order_and_names_of_classes_do_not_matter(count, dim, seed, temperature, size):
    a, b = draw(seed, 2, count, dim)
    ids = torch.randint(0, 5, (count,), generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    close = torch.testing.assert_close
    close(nt_xent(a * size, b, temperature), nt_xent(a, b, temperature))
    close(nt_xent(b[order], a[order], temperature), nt_xent(a, b, temperature))
    close(clip_loss(b[order], a[order], 1 / temperature), clip_loss(a, b, 1 / temperature))
    close(sup_con(a[order], 7 - 3 * ids[order], temperature), sup_con(a, ids, temperature))
    close(info_nce(a, b, b[order], temperature), info_nce(a, b, b, temperature))


@calm
@given(**SHAPES)
def test_gradients_are_tangent_to_the_sphere(count, dim, seed, temperature, size):
    """Scaling an embedding does not change the loss, so its gradient has no part along it."""
    a, b = (draw(seed, 2, count, dim) * size).unbind()
    a = a.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nt_xent(a, b, temperature), a)
    radial = (grad * a.detach()).sum(1).abs()
    assert (radial <= 1e-9 * (1 + 1 / temperature)).all()
