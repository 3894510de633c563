"""Ranks that call a loss together start it together, or every one of them raises what any of them found wrong."""

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from bigssl_kernels.checks import FLOATS, compute_dtype, is_real
from bigssl_kernels.distributed import asks, gather_numbers

Item = TypeVar("Item")

KINDS = (ValueError, TypeError, RuntimeError)


def agreed(fn: str, name: str, value: Tensor, group: ProcessGroup | None) -> AbstractContextManager[None]:
    """Checks within it hold on every rank, and `value` has one shape and dtype on all, or each rank raises the same.

    A rank that raised alone would leave the others waiting in a collective, and collectives of unequal sizes abort
    (gloo) or hang (nccl). Four numbers pass from host to host where the group can do so (gloo, "cpu:gloo,cuda:nccl"):
    each call is compared, and no device is waited for. A group of devices only ("nccl") would cost a device sync each
    time: there the group's first call is compared, which all ranks make together; what parts later ends as nccl ends
    it. Nothing is compared under a trace: a graph is made for one size.
    """
    if torch.compiler.is_compiling() or group is None or group.size() == 1:
        return nullcontext()
    if isinstance(value, Tensor) and not is_real(value):
        return nullcontext()
    return _Agreement(fn, name, value, group)


class _Agreement(AbstractContextManager[None]):
    def __init__(self, fn: str, name: str, value: Tensor, group: ProcessGroup) -> None:
        self._fn, self._name, self._value, self._group = fn, name, value, group

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, KINDS) or not asks(self._group):
            return
        mine = [*self._value.shape, FLOATS.index(compute_dtype(self._value))] if error is None else [0, 0, 0]
        complaint = str(error).encode() if error is not None else b""
        numbers = gather_numbers([len(complaint), *mine], self._value, self._group)
        if longest := max(length for length, *_ in numbers):
            which = next((i for i, known in enumerate(KINDS) if isinstance(error, known)), 0)
            padded = [which, *complaint, *bytes(longest - len(complaint))]
            raise _complaint(gather_numbers(padded, self._value, self._group)) from None
        if len(by_rank := _grouped([tuple(one) for _, *one in numbers])) > 1:
            raise _difference(self._fn, self._name, by_rank)


def _complaint(padded: list[list[int]]) -> Exception:
    """What the ranks found wrong, each thing once with the ranks that found it; of the kind of the first."""
    by_rank = _grouped([(which, bytes(text).rstrip(b"\0").decode()) for which, *text in padded])
    found = {(which, text): ranks for (which, text), ranks in by_rank.items() if text}
    return KINDS[next(iter(found))[0]]("; ".join(f"{text} (on {ranks})" for (_, text), ranks in found.items()))


def _difference(fn: str, name: str, by_rank: dict[tuple[int, ...], str]) -> ValueError:
    found = "; ".join(
        f"({rows}, {features}) {FLOATS[dtype]} on {ranks}" for (rows, features, dtype), ranks in by_rank.items()
    )
    return ValueError(f"{fn}: {name} differs between the ranks: {found}; every rank of the group needs the same shape "
                      "and dtype (leave out the last, smaller batch)")  # fmt: skip


def _grouped(of_ranks: list[Item]) -> dict[Item, str]:
    """What the ranks have, each once -> the ranks that have it, in words."""
    ranks = {one: [rank for rank, other in enumerate(of_ranks) if other == one] for one in dict.fromkeys(of_ranks)}
    return {one: f"rank {', '.join(map(str, those[:8]))}{' ...' * (len(those) > 8)}" for one, those in ranks.items()}
