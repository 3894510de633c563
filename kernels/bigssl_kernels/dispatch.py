"""Which implementation runs, and why."""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from bigssl_kernels.checks import compute_dtype
from bigssl_kernels.interpreter import bfloat16_is_exact

Result = TypeVar("Result")

CHOICES = ("auto", "triton", "torch", "reference")
VARIABLE = "BIGSSL_KERNELS"
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# (family, implementation) -> module with that family's functions. A family missing here has no such implementation.
MODULES = {
    ("similarity", "torch"): "bigssl_kernels.contrastive.similarity_torch",
    ("similarity", "triton"): "bigssl_kernels.contrastive.similarity_triton",
    ("sigmoid", "triton"): "bigssl_kernels.contrastive.sigmoid_triton",
    ("sigmoid", "torch"): "bigssl_kernels.contrastive.sigmoid_torch",
    ("linear_ce", "torch"): "bigssl_kernels.linear_ce.chunked",
    ("linear_ce", "triton"): "bigssl_kernels.linear_ce.fused",
}


def choose(fn: str, family: str, impl: str, data: Tensor) -> str:
    """The implementation that runs `fn` on `data`: "triton", "torch" or "reference"."""
    return choose_with_reason(fn, family, impl, data)[0]


def choose_with_reason(fn: str, family: str, impl: str, data: Tensor) -> tuple[str, str]:
    """The implementation and one clause saying why. An explicit choice that cannot run raises."""
    asked, origin = impl, "asked for by impl="
    if impl == "auto":
        asked, origin = os.environ.get(VARIABLE, "auto"), f"asked for by {VARIABLE}="
    if asked not in CHOICES:
        raise ValueError(f"{fn}: impl is {asked!r} ({origin}); allowed are {', '.join(CHOICES)}")
    obstacle = triton_obstacle(family, data)
    if asked == "triton" and obstacle:
        raise RuntimeError(
            f"{fn}: impl='triton' ({origin}) cannot run on device {data.device}, dtype {data.dtype}, "
            f"shape {tuple(data.shape)}: {obstacle}; use impl='auto' or impl='torch'"
        )
    if asked != "auto":
        return asked, f"{origin}{asked!r}"
    if obstacle is None and data.device.type != "cpu":
        return "triton", f"{data.device.type} tensors of dtype {data.dtype}"
    return "torch", obstacle or "Triton interprets CPU tensors only when asked for"


def triton_obstacle(family: str, data: Tensor) -> str | None:
    """Why Triton cannot run on `data`, or None where it can."""
    if (family, "triton") not in MODULES:
        return "this loss has no Triton kernel"
    if not TRITON_INSTALLED:
        return "triton is not installed"
    if data.dtype not in TRITON_DTYPES:
        return f"the Triton kernels take float32, bfloat16 and float16, not {data.dtype}"
    if data.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "CPU tensors need TRITON_INTERPRET=1"
    if data.device.type not in ("cpu", "cuda"):
        return f"no Triton driver for device type {data.device.type!r}"
    if os.environ.get("TRITON_INTERPRET") == "1" and torch.bfloat16 in (data.dtype, compute_dtype(data)):
        return None if bfloat16_is_exact() else "Triton's interpreter (TRITON_INTERPRET=1) takes bfloat16 for integers"
    return None


@functools.cache
def module(family: str, impl: str) -> ModuleType:
    """The module that implements `family`; imported at first use, so that importing the package needs torch only."""
    return importlib.import_module(MODULES[family, impl])


def exact(loss: Callable[..., Result]) -> Callable[..., Result]:
    """Shut autocast out of `loss`."""

    @functools.wraps(loss)
    def run(first: Tensor, *args: Any) -> Result:
        if first.device.type == "meta" or not torch.is_autocast_enabled(first.device.type):
            return loss(first, *args)  # entering a context costs as much as a small loss
        with torch.autocast(first.device.type, enabled=False):
            return loss(first, *args)

    return run


def refuse_double_backward(ctx, *_: object) -> None:
    raise RuntimeError(
        "bigssl_kernels: the gradient was differentiated again (create_graph=True?), which the fused kernels cannot "
        "do; use impl='reference' for second derivatives"
    )


FAMILIES: dict[str, str] = {}  # public function -> family
