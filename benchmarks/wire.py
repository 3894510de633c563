"""What a rank sends: every collective of a block of code, whoever calls it (bigssl, its kernels, DeepSpeed, torch).

Volumes are those of ring algorithms (Thakur et al. 2005), which is what NCCL and gloo do with large messages. Of n
bytes on W ranks a rank sends, on average, and receives:

    all-reduce                         2 (W - 1) / W · n     a reduce-scatter and an all-gather
    all-gather                           (W - 1) / W · n     n: the gathered tensor
    reduce-scatter, all-to-all           (W - 1) / W · n     n: what a rank puts in
    broadcast, reduce                    (W - 1) / W · n
    send                                               n
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from types import FrameType
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

METHODS = {  # of torch's process groups: bytes sent for each of n, in (W - 1) / W
    2: ["allreduce", "allreduce_coalesced"],
    1: ["allgather", "_allgather_base", "all_gather_single", "all_gather_single_coalesced", "allgather_coalesced",
        "allgather_into_tensor_coalesced", "reduce_scatter", "_reduce_scatter_base", "reduce_scatter_single",
        "reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced", "broadcast", "reduce", "alltoall",
        "alltoall_base", "all_to_all_single"],
}  # fmt: skip
REFUSED = ["gather", "scatter"]
"""Nobody calls them so far; what they send differs by rank."""
FUNCTIONS = {
    2: ["all_reduce"],
    1: ["all_gather_into_tensor", "reduce_scatter_tensor", "broadcast", "all_to_all_single"],
}  # fmt: skip
"""Of torch.ops._c10d_functional, by which the kernels call."""
HELPERS = ("bigssl.distributed", "bigssl_kernels.distributed", "bigssl_kernels.contrastive.ring")
AUTOGRAD = "autograd: "


class Wire:
    """sent: bytes by who called, "deepspeed" or "bigssl", and by the function (what it does in a backward pass stands
    below "autograd: " and the helper in `distributed`). Fractions: a ring's share of a message need not be whole."""

    def __init__(self) -> None:
        self.sent: Counter[tuple[str, str]] = Counter()

    def total(self, who: str | None = None) -> Fraction:
        return sum((Fraction(sent) for (caller, _), sent in self.sent.items() if who in (None, caller)), Fraction(0))

    def add(self, share: Fraction, tensors: Any) -> None:
        if sent := share * _bytes(tensors):
            self.sent[_caller()] += sent  # type: ignore[assignment]


@contextlib.contextmanager
def counted() -> Iterator[Wire]:
    """What this process sends within it. What C++ calls by itself is not seen: DistributedDataParallel's buckets."""
    wire, group, functional = Wire(), dist.ProcessGroup, torch.ops._c10d_functional
    with contextlib.ExitStack() as stack:
        for times, names in METHODS.items():
            for name in filter(partial(hasattr, group), names):
                stack.enter_context(mock.patch.object(group, name, _method(wire, name, times)))
        for times, names in FUNCTIONS.items():
            for name in names:
                stack.enter_context(mock.patch.object(functional, name, _function(wire, name, times)))
        stack.enter_context(mock.patch.object(group, "send", _sending(wire, group.send)))
        for name in REFUSED:
            stack.enter_context(mock.patch.object(group, name, side_effect=NotImplementedError(f"volume of {name}")))
        yield wire


def _method(wire: Wire, name: str, times: int) -> Callable[..., Any]:
    original = getattr(dist.ProcessGroup, name)

    def method(group: dist.ProcessGroup, *arguments: Any, **options: Any) -> Any:
        given = [*arguments, *options.values()][:2]
        # of output and input the larger is what all ranks have together
        whole = max(given, key=_bytes)
        wire.add(Fraction(times * (group.size() - 1), group.size()), whole)
        return original(group, *arguments, **options)

    return method


def _sending(wire: Wire, original: Any) -> Callable[..., Any]:
    def send(group: dist.ProcessGroup, tensors: Any, *arguments: Any, **options: Any) -> Any:
        wire.add(Fraction(1), tensors)
        return original(group, tensors, *arguments, **options)

    return send


def _function(wire: Wire, name: str, times: int) -> Callable[..., Any]:
    original = getattr(torch.ops._c10d_functional, name)

    def function(tensor: Tensor, *arguments: Any) -> Any:
        world = dist.distributed_c10d._resolve_process_group(arguments[-1]).size()
        parts = world if name == "all_gather_into_tensor" else 1
        wire.add(Fraction(times * (world - 1) * parts, world), tensor)
        return original(tensor, *arguments)

    return function


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


def _caller() -> tuple[str, str]:
    """Who, as `Wire` has it: the first on the stack that is neither torch nor a helper around its collectives."""
    frame: FrameType | None = sys._getframe(1)
    helper = ""
    while frame is not None:
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        room = module.split(".")[0]
        if module in HELPERS:
            helper = helper or function
        elif room == "deepspeed" and not module.startswith(("deepspeed.comm", "deepspeed.utils")):
            return ("bigssl", AUTOGRAD + helper) if helper else ("deepspeed", function)
        elif room in ("bigssl", "bigssl_kernels"):
            return "bigssl", f"{module.partition('.')[2]}: {function}"
        frame = frame.f_back
    return "other", ""
