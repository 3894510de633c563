"""`more`: the further samples that one sample draws while it is prepared (a negative, a second document, a distractor).

Which they are is known within `prepare` only. Local ones are read there. To wait for a remote one there would cost a
round trip for each, one after the other; but prepare is a pure function, so it may be given up at a sample that is not
here yet and be run again: those that a group of samples wants are fetched together, one wait for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.loading.watchdog import DRAWING, PREPARING, Stages
from bigssl.data.order.order import Order, as_it_is
from bigssl.data.sample import Sample


class Bad(NamedTuple):
    """A bad sample that another stands in for. sample: the same for the same sample of `source`."""

    source: str
    sample: str
    cause: str


class NotHereYet(BaseException):
    """A drawn sample has to be fetched first. (No Exception: no `prepare` may take it for an error and go on.)"""


class NothingToDraw(DataError):
    """No sample is left to be drawn: which is no fault of the one that draws."""


class Shelf:
    """The drawn samples of a group of samples of source `name`; remote ones are kept for as long as it lives.

    done: of the run, before the step that they are drawn for (see `Sample`).
    """

    def __init__(self, stream: Order, name: str, stages: Stages, done: float = 0.0) -> None:
        self.stream, self.name, self.stages, self.done = stream, name, stages, done
        self._here: dict[int, Sample | DataError] = {}
        self._wanted: dict[int, None] = {}
        self._coming: set[int] = set()

    def read(self, position: int) -> Sample:
        """The sample at `position`. Raises DataError, and NotHereYet where it has to be fetched."""
        if position not in self._here:
            if self.stream.remote and position not in self._coming:
                self._wanted[position] = None
                raise NotHereYet
            self.stages.publish(DRAWING, self.name, position)
            try:
                found: Sample | DataError = self.stream.read(position)
            except DataError as error:
                found = error
            if not self.stream.remote:
                return _good(found)
            self._here[position] = found
        return _good(self._here[position])

    def fetch(self, now: Iterable[int], later: Iterable[int]) -> None:
        """Have what was wanted fetched together, before what `Order.announce` was told and is still to be read."""
        wanted, self._wanted = list(self._wanted), {}
        self._coming.update(wanted)
        self.stream.announce([*wanted, *now], later)


class Draws:
    """The `more` of `sample`, for one run of its prepare. Adds to `errors` what was drawn and is bad."""

    def __init__(self, shelf: Shelf, sample: Sample, errors: list[Bad]) -> None:
        self._shelf, self._sample, self._errors = shelf, sample, errors
        self._bad: dict[int, str] = {}
        self._given: list[str] = []

    def __call__(self, rng: np.random.Generator, use: Callable[[Sample], Any] = as_it_is) -> Any:
        """See `More`."""
        while True:
            position, found = self._draw(rng), None
            try:
                found = self._shelf.read(position)
                used = use(found._replace(done=self._shelf.done))
            except DataError as error:
                self._replace(position, found, error)
            else:
                self._given.append(where(found))
                return used
            finally:
                self._shelf.stages.publish(PREPARING, self._shelf.name, self._sample.position, self._sample.key)

    @property
    def given(self) -> str:
        """`, which drew shard x.tar, sample 'b'` for a message; empty where nothing was drawn."""
        return f", which drew {' and '.join(self._given)}" if self._given else ""

    def _draw(self, rng: np.random.Generator) -> int:
        stream = self._shelf.stream
        try:
            if len(self._bad) > stream.max_errors:
                raise DataError(f"{len(self._bad)} that it drew are bad, data.max_errors allows {stream.max_errors}")
            return stream.another(self._sample.position, rng, self._bad)
        except DataError as error:
            last = f"; the last bad one: {list(self._bad.values())[-1]}" if self._bad else ""
            who = f"source {stream.source!r}, {where(self._sample)}"
            raise NothingToDraw(f"{who}: no further sample can be drawn: {error}{last}") from None

    def _replace(self, position: int, found: Sample | None, error: DataError) -> None:
        """By the policy of the source: another draw stands in for what is bad, or the run ends, naming both samples."""
        stream = self._shelf.stream
        cause = str(error) if found is None else f"{where(found)}: {error}"
        if stream.on_error == "raise":
            self._given.clear()
            raise DataError(f"it drew {cause}") from error
        self._bad[position] = cause
        self._errors.append(Bad(self._shelf.name, stream.identity(position, found), cause))


def where(sample: Sample) -> str:
    """`shard x.tar, sample 'b'`."""
    return f"shard {sample.shard}, sample {sample.key!r}"


def _good(found: Sample | DataError) -> Sample:
    if isinstance(found, DataError):
        raise found
    return found
