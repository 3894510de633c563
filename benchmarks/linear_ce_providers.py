"""Who computes linear cross-entropy in the benchmark, and on what; a provider that is wrong is not timed."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl_kernels import linear_cross_entropy

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LIMIT = {"cpu": 1 << 28, "cuda": 1 << 33}  # logits beyond which providers that hold them are not tried
BASE = "full logits"


def full_logits(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), labels)


def gathered(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    kept = (labels != -100).nonzero().squeeze(1)
    return F.cross_entropy(F.linear(hidden[kept], weight), labels[kept])


def torch_own(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, weight, labels)


def torch_chunked(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, weight, labels, options=torch.nn.LinearCrossEntropyOptions())


def ours(impl: str, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight, labels, impl=impl)


def liger() -> Loss:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda hidden, weight, labels: loss(weight, hidden, labels)


def cut_cross_entropy() -> Loss:
    from cut_cross_entropy import linear_cross_entropy as cut

    return lambda hidden, weight, labels: cut(hidden, weight, labels)


PEERS = {"liger-kernel": ("liger_kernel", liger), "cut-cross-entropy": ("cut_cross_entropy", cut_cross_entropy)}


def absent(device: str, wanted: list[str] | None) -> dict[str, str]:
    """Peers that do not run here -> why."""
    reasons = {}
    for name, (module, _) in PEERS.items():
        if device != "cuda":
            reasons[name] = "not run: needs a GPU"
        elif importlib.util.find_spec(module) is None:
            reasons[name] = "not run: not installed"
    return {name: reason for name, reason in reasons.items() if not wanted or name in wanted}


@functools.cache
def compiled() -> Loss:
    """One for all sizes, so that shapes that change are compiled for any size, as in a training loop."""
    loss: Loss = torch.compile(full_logits)
    return loss


def providers(device: str, logits: int, wanted: list[str] | None) -> dict[str, Loss]:
    """Name -> loss; without those that hold all logits where these would be too many."""
    table: dict[str, Loss] = {}
    if logits <= LIMIT[device]:
        table |= {BASE: full_logits, "gathered": gathered, "compiled": compiled()}
        if hasattr(F, "linear_cross_entropy"):  # torch 2.13
            table["torch"] = torch_own
    if hasattr(F, "linear_cross_entropy"):
        table["torch, chunked"] = torch_chunked
    if device == "cuda":
        table |= {name: make() for name, (module, make) in PEERS.items() if importlib.util.find_spec(module)}
        table["ours/triton"] = functools.partial(ours, "triton")
    table["ours/torch"] = functools.partial(ours, "torch")
    return {name: loss for name, loss in table.items() if not wanted or name in wanted}


def problem(shape: dict[str, Any], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight (both with gradients) and labels, of which `share` are kept."""
    generator = torch.Generator().manual_seed(shape["tokens"] + shape["width"])
    dtype = DTYPES[shape["dtype"]]  # drawn in place: wider numbers thrown away would count as peak memory
    hidden = torch.randn(shape["tokens"], shape["width"], generator=generator, dtype=dtype)
    weight = torch.randn(shape["classes"], shape["width"], generator=generator, dtype=dtype).div_(shape["width"] ** 0.5)
    labels = torch.randint(shape["classes"], (shape["tokens"],), generator=generator)
    labels[torch.rand(shape["tokens"], generator=generator) >= shape["share"]] = -100
    return hidden.to(device).requires_grad_(), weight.to(device).requires_grad_(), labels.to(device)


def both(loss: Loss, given: tuple[Tensor, Tensor, Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward."""

    def run() -> tuple[Tensor, ...]:
        value = loss(*given)
        return value.detach(), *torch.autograd.grad(value, given[:2])

    return run


def complaint(loss: Loss, shape: dict[str, Any], device: str) -> str:
    """ "" where loss and gradients agree with float64 at 257 tokens and 1001 classes, else what differs."""
    given = problem(shape | {"tokens": 257, "classes": 1001}, device)
    wide = [value.detach().double().requires_grad_() for value in given[:2]]
    truth = both(full_logits, (wide[0], wide[1], given[2]))()
    try:
        results = both(loss, given)()
    except Exception as error:  # a peer may fail in any way; that is a result
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    allowed = 1e-4 if shape["dtype"] == "float32" else 3e-2
    for name, got, expected in zip(("loss", "d hidden", "d weight"), results, truth, strict=True):
        gap = ((got.double() - expected).abs().max() / expected.abs().max()).item()
        if not gap <= allowed:
            return f"{name} is off by {gap:.2g} of its largest entry"
    return ""
