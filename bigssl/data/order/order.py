"""What the loader, the checkpoints and the pre-flight need of a source: an order of samples, dealt out to ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex


def as_it_is(sample: Sample) -> Sample:
    """The sample."""
    return sample


class More(Protocol):
    """How a sample that is prepared gets at others of its source (a negative, a second document)."""

    def __call__(self, rng: np.random.Generator, /, use: Callable[[Sample], Any] = as_it_is) -> Any:
        """What `use` makes of another sample, which `rng` draws as `Order.another` says.

        A sample that cannot be read, or for which `use` raises DataError (it cannot be decoded), is bad by the policy
        of the source: another is drawn (and the bad one counted), or the error names both. What is decoded outside of
        `use` counts as a fault of the sample that is prepared. Two calls may draw the same sample. Draw before costly
        work: where samples are remote, prepare is begun again once those that it drew are here.
        """


def position_beside(position: int, size: int, rng: np.random.Generator, without: Collection[int]) -> int:
    """A position of the same epoch of `size` samples, drawn by one number of `rng` from all but `position` and
    `without`. Raises DataError where none is left."""
    first = position - position % size
    taken = sorted({position, *without})
    if len(taken) >= size:
        raise DataError(f"the dataset holds {size} samples, of which none is left")
    place = first + int(rng.integers(size - len(taken)))
    for other in taken:
        place += place >= other
    return place


class Order(ABC):
    """An endless order of samples; every answer is a pure function of (data, seed, position).

    source: name in the recipe. on_error, max_errors: policy for bad samples, see `Stream`.
    """

    source: str
    on_error: str
    max_errors: int

    @abstractmethod
    def __len__(self) -> int:
        """Different samples there are."""

    @property
    @abstractmethod
    def indexes(self) -> Mapping[str, DatasetIndex]:
        """The datasets by name ("" where there is one only); samples are numbered through them in this order."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex: equal for equal data in an equal order, wherever the data lies."""

    @abstractmethod
    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, number of the sample) at `position`, any integer from 0. Costs no read."""

    @abstractmethod
    def locate_many(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`locate` of int64 [n] positions at once: epochs and numbers, int64 [n]."""

    def identity(self, position: int, sample: Sample | None) -> str:
        """What tells the sample at `position` from the others of the source, in every epoch. sample: it, where it could
        be read. Costs no read."""
        return str(self.locate(position)[1])

    @abstractmethod
    def key(self, position: int) -> str:
        """Key of the sample at `position`, from the index alone. Raises DataError."""

    @abstractmethod
    def shard_at(self, position: int) -> str:
        """URL, as it may be shown, of the shard that holds `position`. Costs no read."""

    @property
    @abstractmethod
    def remote(self) -> bool:
        """True where `announce` is worth calling."""

    @abstractmethod
    def announce(self, now: Iterable[int], later: Iterable[int]) -> None:
        """Fetch the samples at these positions together: those to be read now, then `later`."""

    @abstractmethod
    def close(self) -> None:
        """End threads, close connections and files, as before a fork; a later read starts anew."""

    @abstractmethod
    def read(self, position: int) -> Sample:
        """The sample at `position`, verified. Raises DataError naming shard, key, offset and cause."""

    @abstractmethod
    def another(self, position: int, rng: np.random.Generator, without: Collection[int] = ()) -> int:
        """A position that `rng` draws among the samples beside which the one at `position` is seen.

        They are those of its dataset (a negative from another one would be told by its style) in its epoch, each as
        likely, without the one at `position` and those at `without` (which are of these). Takes one number of `rng`: a
        pure function of it and the position, for any ranks, workers and history. Costs no read. Raises DataError where
        there is none, and where samples cannot be read in any order.
        """

    @abstractmethod
    def candidates(self, position: int) -> Iterator[int]:
        """`position`, then, where bad samples are skipped, what stands in for it: the next ones of the same epoch."""

    @abstractmethod
    def global_batch(self, step: int, size: int) -> np.ndarray:
        """int64 [size]: positions of global step `step`, so sorted that a contiguous piece reads contiguous lanes.

        The same for every world size.
        """

    def micro_batch(self, step: int, size: int, rank: int, world: int, micro: int, accum: int) -> np.ndarray:
        """int64 [size / world / accum]: what `rank` reads for micro-batch `micro` of `accum` of a step.

        A rank has a contiguous piece of the global batch and deals it over its micro-batches, so a micro-batch, ranks
        in order, is `global_batch[micro::accum]` at every world size. Raises DataError when size is not divisible.
        """
        if size % (world * accum):
            allowed = f"a multiple of ranks × accumulation = {world} × {accum}"
            raise DataError(
                f"source {self.source!r}: a global batch of {size} samples cannot be dealt out; use {allowed}"
            )
        share = size // world
        piece = self.global_batch(step, size)[rank * share : (rank + 1) * share]
        return piece[micro::accum]
