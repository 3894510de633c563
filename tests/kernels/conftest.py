"""Fixtures of the kernel tests: poisoned memory, and comparisons of a loss and each of its gradients by name."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bigssl_kernels.contrastive import dense

Results = dict[str, Tensor]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS has no fixed order, and says so
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]


@pytest.fixture(autouse=True)
def tiled_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches go through the tiles too; tests of the dense form set SMALL themselves."""
    monkeypatch.setattr(dense, "SMALL", 0)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, so that an output nobody wrote shows; an operator without a fixed order raises."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def hardware_arithmetic() -> Iterator[None]:
    """log(0) and inf - inf are silent on a GPU; numpy, which the interpreter of Triton computes with, would warn."""
    with np.errstate(all="ignore"):
        yield


def run_loss(loss: Callable[..., Tensor], inputs: Results, upstream: Tensor | None = None) -> Results:
    """The loss and the gradient of each input, by name. `upstream` weighs the rows of an unreduced loss."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    output = loss(**leaves)
    output.backward(torch.ones_like(output) if upstream is None else upstream.to(output.dtype))
    return {"loss": output.detach()} | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


def assert_close(actual: Results, truth: Results, tolerance: float) -> None:
    """Each result is within `tolerance` of the truth, relative to the truth's largest entry (0.1 if that is less)."""
    assert actual.keys() == truth.keys()
    for name, expected in truth.items():
        value = actual[name].double()
        assert value.shape == expected.shape, name
        error = (value - expected.double()).abs().max().item() if value.numel() else 0.0
        bound = tolerance * max(0.1, expected.abs().max().item() if expected.numel() else 0.0)
        assert error <= bound, f"{name}: error {error:.3g}, allowed {bound:.3g}"


def assert_as_good(actual: Results, plain: Results, truth: Results, slack: float) -> None:
    """Each result is no further from the truth than twice what plain torch is at that dtype, plus slack."""
    assert actual.keys() == plain.keys() == truth.keys()
    for name, expected in truth.items():
        error, usual = ((value[name].double() - expected.double()).abs().max().item() for value in (actual, plain))
        bound = 2 * usual + slack * max(1e-3, expected.abs().max().item())
        assert error <= bound, f"{name}: error {error:.3g}, plain torch {usual:.3g}, allowed {bound:.3g}"


@pytest.fixture
def run() -> Callable[..., Results]:
    return run_loss


@pytest.fixture
def close() -> Callable[..., None]:
    return assert_close


@pytest.fixture
def as_good() -> Callable[..., None]:
    return assert_as_good


@pytest.fixture
def random() -> Callable[..., Tensor]:
    """Normal numbers [shape] from a generator of their own, float64 unless told."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw


@pytest.fixture
def linear_ce_operators() -> Callable[..., dict[str, tuple[Any, tuple[Any, ...]]]]:
    """Every operator of linear cross-entropy with arguments that opcheck takes, for an implementation and a dtype."""

    def build(impl: str, dtype: torch.dtype, grad: bool) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        generator, ops = torch.Generator().manual_seed(0), torch.ops.bigssl_kernels
        draws = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((9, 5), (7, 5), (7,)))
        hidden, weight, bias = (value.requires_grad_(grad) for value in draws)
        labels, row = torch.tensor([0, -100, 6, 3, 2, -100, 1, 5, 4]), torch.rand(9, generator=generator, dtype=dtype)
        inputs, options = (hidden, weight, labels, bias), (7, 0, "", -100, 0.1, 0.1, 2.0, dtype, impl)
        detached = tuple(value.detach() for value in inputs)
        return {
            "rows": (ops.linear_ce_rows, (*inputs, *options, True)),
            "rows, plain": (ops.linear_ce_rows, (hidden, weight, labels, None, *options, False)),
            "total": (ops.linear_ce_total, (row, *inputs, *options, True, *3 * (True,))),
            "total, frozen": (ops.linear_ce_total, (row, hidden, weight.detach(), labels, None, *options, False,
                                                    True, False, False)),
            "labels": (ops.linear_ce_labels, (labels.int(), 7, -100, "name")),
            "gradient": (ops.linear_ce_gradient, (row, row, *detached, *options, True, True, True)),
            "gradient, frozen": (ops.linear_ce_gradient, (row, row, *detached, *options, False, True, False)),
        }  # fmt: skip

    return build
