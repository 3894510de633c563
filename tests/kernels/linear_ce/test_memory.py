"""What linear cross-entropy takes beyond its gradients, and the 24-bit sums that keep it small."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bigssl_kernels.linear_ce import chunked
from bigssl_kernels.linear_ce import wide as wide_sum
from bigssl_kernels.linear_ce.terms import Options, Problem, Wanted

MIB = 1 << 20
ALL = Wanted(True, True, True)


class Peak(TorchDispatchMode):
    """Bytes of the storages made inside that live at once, at most."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "out" not in (kwargs or {}):
            for value in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(value, torch.Tensor) and not func.is_view:
                    self._made(value.untyped_storage(), args)
        return result

    def _made(self, storage, args):
        known = [value.untyped_storage() for value in args if isinstance(value, torch.Tensor)]
        if any(storage is other for other in known) or id(storage) in self.alive:
            return
        size, key = storage.nbytes(), id(storage)
        self.alive[key] = weakref.ref(storage, lambda _: self._freed(key, size))
        self.now += size
        self.most = max(self.most, self.now)

    def _freed(self, key, size):
        del self.alive[key]
        self.now -= size


def problem(tokens, width, classes, dtype, device, share=1.0):
    generator = torch.Generator().manual_seed(0) if device == "cpu" else None
    hidden, weight = (
        torch.randn(rows, width, generator=generator, dtype=torch.float32, device=device).to(dtype)
        for rows in (tokens, classes)
    )
    labels = torch.arange(tokens, device=device) % classes
    kept = torch.rand(tokens, generator=generator, device=device) < share
    options = Options(classes, 0, "", -100, 0.1, 1e-4, None, dtype, "")
    return Problem(hidden, weight, labels, weight.new_zeros(classes), kept, options)


def gradients_of(given):
    return sum(value.nbytes for value in (given.hidden, given.weight))


def test_the_count_of_bytes_counts():
    with Peak() as peak:
        first = torch.zeros(1000)
        second = first.double()
        view = second[:10]
        del first
        third = torch.ones(1500) + view.sum()
    assert peak.most == 8000 + 2 * 6000 + 8 and peak.now == 8000 + 6000 and third is not None


class Nothing:
    """In place of the kernels: launches that do nothing."""

    def __getattr__(self, name):
        return self

    def __getitem__(self, grid):
        return lambda *args, **options: None


SIZES = [
    (32_768, 4096, 128_256),
    (32_768, 4096, 256_000),
    (16_384, 1024, 128_256),
    (4096, 4096, 30_522),
    (512, 256, 50_257),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_kernels_take_256_mib_at_most(monkeypatch, size, dtype):
    triton_form = pytest.importorskip("bigssl_kernels.linear_ce.fused")
    monkeypatch.setattr(triton_form, "kernels", Nothing())
    given = problem(*size, dtype, "meta")
    row = given.hidden.new_zeros(size[0], dtype=torch.float32)
    for run in (
        lambda: triton_form.forward(given, row, True, ALL)[1],
        lambda: triton_form.backward(given, row, (row, row, row), ALL),
    ):
        with Peak() as peak:
            grads = run()
        assert [grad.dtype for grad in grads] == [dtype, dtype, torch.float32]
        assert 0 < peak.most - gradients_of(given) <= 256 * MIB


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_torch_form_takes_a_panel_and_a_byte_a_number(monkeypatch, dtype, share):
    """A sixty-fourth of (32768, 4096), in everything that has a size."""
    for name, value in {"PANEL": MIB, "LIMIT": 4 * MIB, "ADDED": MIB // 64, "CHUNK": 1 << 14, "NARROWEST": 64}.items():
        monkeypatch.setattr(chunked, name, value)
    given = problem(4096, 512, 1000, dtype, "cpu", share)
    row = torch.ones(4096)
    with Peak() as peak:
        grads = chunked.backward(given, torch.full((4096,), 9.0), (row, row, row), ALL)
    kept = given.kept.sum().item()
    copied = 0 if share == 1 else kept * 512 * dtype.itemsize
    low = kept * 512 if dtype == torch.bfloat16 else 0
    assert [grad.dtype for grad in grads] == [dtype, dtype, torch.float32]
    assert 0 < peak.most - gradients_of(given) <= MIB + low + copied + MIB


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wide_sums_round_once(dtype):
    """A hundred products into a 16-bit gradient: as near to the truth as rounding the exact sum is."""
    products = torch.randn(100, 33, 7, generator=torch.Generator().manual_seed(0)) * 1e-2
    gradient = torch.full((33, 7), float("nan"), dtype=dtype)
    low = wide_sum.low_bytes(gradient)
    for number, product in enumerate(products):
        wide_sum.add(product, gradient, low, number == 0, number == 99)
    exact = products.double().sum(0)
    unit = torch.finfo(dtype).eps * exact.abs()
    assert ((gradient.double() - exact).abs() <= 0.5 * unit + 100 * 2.0**-17 * 0.3).all()


def test_wide_sums_keep_what_is_no_number():
    bits = torch.tensor([0x7FFFFFFF, 0x7FC00000, 0x7FC00001, -1, 0x7F800000, -0x800000], dtype=torch.int32)
    special = bits.view(torch.float32)
    gradient = torch.empty(6, dtype=torch.bfloat16)
    low = wide_sum.low_bytes(gradient)
    wide_sum.write(special, gradient, low)
    assert wide_sum.read(gradient, low).isnan().tolist() == [True, True, True, True, False, False]
    assert wide_sum.read(gradient, low)[4:].tolist() == [float("inf"), float("-inf")]
