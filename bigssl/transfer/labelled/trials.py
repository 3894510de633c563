"""What is repeated: which samples a procedure may learn from, with which seed; and its work, dealt over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.data.order import rng
from bigssl.transfer.bench import Bench
from bigssl.transfer.labelled.section import Learning
from bigssl.transfer.scores import words_of
from bigssl.transfer.team import named

T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """One run of a procedure.

    Attributes:
        contender: "trained", "random_net" or "raw/WORDS".
        fraction: of the labelled samples, in (0, 1].
        seed: 0, 1, ...
        rows: int64 [n], ascending numbers of the labelled samples that it may see.
    """

    contender: str
    fraction: float
    seed: int
    rows: Tensor = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{words_of(self.contender)} with {100 * self.fraction:g} % of the samples ({len(self.rows)}), " \
               f"seed {self.seed}"


def trials(
    section: Learning, contenders: Iterable[str], count: int, strata: Sequence[Hashable] | None = None, *, seed: int
) -> list[Trial]:
    """Every contender at every fraction with every seed, in this order.

    For one seed, the samples of a smaller fraction are part of those of a larger one, and contenders have the same.

    Args:
        count: labelled samples.
        strata: of each sample, its class: every class keeps its share, and one sample at least.
        seed: of the run.
    """
    ordered = {each: _dealt(count, strata, (seed, each)) for each in range(section.seeds)}
    rows = {(fraction, each): _part(parts, fraction) for each, parts in ordered.items()
            for fraction in section.fractions}  # fmt: skip
    return [Trial(contender, fraction, each, rows[fraction, each]) for contender in contenders
            for fraction in section.fractions for each in range(section.seeds)]  # fmt: skip


def _dealt(count: int, strata: Sequence[Hashable] | None, seed: tuple[int, int]) -> list[np.ndarray]:
    """The samples of each stratum in the order in which they are taken."""
    order = rng.permutation(count, "fractions", *seed)
    if strata is None:
        return [order]
    parts: dict[Hashable, list[int]] = {}
    for row in order.tolist():
        parts.setdefault(strata[row], []).append(row)
    return [np.array(part, dtype=np.int64) for part in parts.values()]


def _part(parts: Sequence[np.ndarray], fraction: float) -> Tensor:
    """int64, ascending: that share of each part, rounded, and one sample at least."""
    taken = [part[: max(1, math.floor(fraction * len(part) + 0.5))] for part in parts]
    return torch.from_numpy(np.sort(np.concatenate(taken)).astype(np.int64))


def held_out(strata: Sequence[Hashable], share: float, seed: tuple[int, int]) -> Tensor:
    """int64, ascending: a share of the samples to choose settings on: of each class that has two or more, one at
    least, and never all."""
    parts = [part for part in _dealt(len(strata), strata, seed) if len(part) > 1]
    taken = [part[-min(len(part) - 1, max(1, math.floor(share * len(part) + 0.5))) :] for part in parts]
    return torch.from_numpy(np.sort(np.concatenate([np.zeros(0, np.int64), *taken])))


def outcomes(bench: Bench, trials: Sequence[Trial], work: Callable[[Trial], T]) -> dict[Trial, T]:
    """What `work` (picklable result, on the CPU) makes of each trial, in their order. Dealt over the ranks, gathered on
    all: a collective.

    work: depends on nothing but the trial, and takes part in no collective: so the outcome is that of any number of
        ranks.
    Raises:
        AgreedError: on every rank, where `work` raises DataError or OSError on one, or what libraries raise of numbers,
            memory and devices (`bigssl.transfer.team.named`), with the trial in words.
    """
    mine = trials[bench.team.rank :: bench.team.world]
    found: Mapping[Trial, T] = {
        trial: result for part in bench.team.gather(lambda: [(each, _done(bench, each, work)) for each in mine])
        for trial, result in part}  # fmt: skip
    return {trial: found[trial] for trial in trials}


def _done(bench: Bench, trial: Trial, work: Callable[[Trial], T]) -> T:
    try:
        with named(f"{bench.where}: {trial}"):
            return work(trial)
    except DataError as error:
        said = str(error)
        raise DataError(said if said.startswith(bench.where) else f"{bench.where}: {trial}: {said}") from error
