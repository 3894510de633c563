"""The ranks that evaluate together: who does what, and how results come together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from bigssl import distributed
from bigssl.data.errors import DataError

T = TypeVar("T")
REFUSED = (RuntimeError, ValueError, ArithmeticError, MemoryError)  # by numbers, by memory and by devices
CONNECT = timedelta(minutes=5)
PATIENCE = timedelta(days=7)  # ranks may differ by hours; one that ends is noticed at once, its connections close


class AgreedError(DataError):
    """Raised by every rank alike: one speaks for all, and none waits for another."""


@contextmanager
def named(what: str) -> Iterator[None]:
    """What libraries raise inside (a device that is full, a matrix that has no inverse) is a DataError that says at
    `what`, so that the other ranks hear of it; DataError and OSError go through as they are."""
    try:
        yield
    except (DataError, OSError):
        raise
    except REFUSED as error:
        raise DataError(f"{what}: {in_a_line(error)}") from error


def in_a_line(error: BaseException) -> str:
    """The text of an error; of a foreign one its type and first line."""
    if isinstance(error, DataError | OSError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class Team:
    """All ranks of the process group (one where there is none). Building it is a collective, so are its methods.

    They talk through a gloo group of their own, on the CPU: a rank that waits there for a slower one is no collective
    of the training's backend that could time out. To be built at the start of a run: gloo may find no way where the
    training's backend does.

    Raises:
        distributed.NoMeeting: this rank does not reach the others within `CONNECT`.
    """

    def __init__(self) -> None:
        self.rank, self.world = distributed.rank(), distributed.world()
        self._group = _gloo() if distributed.active() else None

    def share(self, count: int) -> range:
        """This rank's contiguous part of `count` things; the parts in rank order are all of them."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What `make` (picklable result) returns on each rank, in rank order.

        Raises:
            AgreedError: on every rank, where `make` raises DataError or OSError on one, with the text of the first.
                In a single process the error itself.
        """
        result: Any = None
        cause: Exception | None = None
        try:
            result = make()
        except (DataError, OSError) as error:
            cause = error
        if self._group is None:
            if cause is not None:
                raise cause
            return [result]
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, (result, None if cause is None else str(cause)), group=self._group)
        if said := [text for _, text in boxes if text is not None]:
            raise AgreedError(said[0]) from cause
        return [each for each, _ in boxes]

    def each(self, make: Callable[[], T]) -> T:
        """What `make` returns on this rank, which need not be picklable. Raises as `gather` does."""
        made: list[T] = []
        self.gather(lambda: made.append(make()))
        return made[0]

    def total(self, part: Tensor) -> Tensor:
        """Sum over ranks of a tensor on the CPU, of equal shape everywhere; in place."""
        if self._group is not None:
            dist.all_reduce(part, group=self._group)
        return part


def _gloo() -> dist.ProcessGroup:
    try:
        group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=CONNECT)
        dist.barrier(group)  # connects where torch would do so at the first use
    except RuntimeError as error:
        why = str(error).strip().partition("\n")[0]
        raise distributed.NoMeeting(
            f"evaluate: the ranks cannot meet over gloo, on the hosts' network: {why}; set GLOO_SOCKET_IFNAME on every "
            "node to the interface by which it reaches the others (`ip addr` lists them), for example "
            "GLOO_SOCKET_IFNAME=eth0; or set evaluate=null probe=null and evaluate elsewhere"
        ) from error
    # The only way to have another timeout for what follows than for the connection.
    dist.distributed_c10d._set_pg_timeout(PATIENCE, group)
    return group
