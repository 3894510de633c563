"""What is repeated: which samples a procedure may learn from, with which seed; and its work, dealt over the ranks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.data.order import rng
from bigssl.transfer.bench import Bench
from bigssl.transfer.labelled.section import Learning
from bigssl.transfer.scores import RAW, words_of
from bigssl.transfer.team import named

T = TypeVar("T")
LOG = logging.getLogger(__name__)
NETWORK = 16  # times the work of what has none


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
    all: a collective. So are notes that `work` makes.

    work: depends on nothing but the trial, and takes part in no collective: so the outcome is that of any number of
        ranks.
    Raises:
        AgreedError: on every rank, where `work` raises DataError or OSError on one, or what libraries raise of numbers,
            memory and devices (`bigssl.transfer.team.named`), with the trial in words.
    """
    mine, before = dealt(trials, bench.team.world)[bench.team.rank], len(bench.notes)
    parts = bench.team.gather(lambda: ([(each, _done(bench, each, work)) for each in _told(bench, mine)],
                                       bench.notes[before:]))  # fmt: skip
    del bench.notes[before:]
    for text in sorted({text for _, notes in parts for text in notes}):
        bench.note(text)
    found: Mapping[Trial, T] = {trial: result for part, _ in parts for trial, result in part}
    return {trial: found[trial] for trial in trials}


def dealt(trials: Sequence[Trial], world: int) -> list[list[Trial]]:
    """Each trial to one of `world` ranks: what takes longest (a network on many samples) first, each to the rank that
    has least to do so far, the first of these (Graham 1969). A rank has its own in the order of `trials`: what is kept
    of one contender is of use to the next."""
    ranks: list[list[int]] = [[] for _ in range(world)]
    load = [0] * world
    for number in sorted(range(len(trials)), key=lambda number: _work(trials[number]), reverse=True):
        rank = load.index(min(load))
        ranks[rank].append(number)
        load[rank] += _work(trials[number])
    return [[trials[number] for number in sorted(each)] for each in ranks]


def _told(bench: Bench, mine: Sequence[Trial]) -> Iterator[Trial]:
    """Each, once it is said that it begins: some take minutes."""
    for number, trial in enumerate(mine, 1):
        LOG.info("%s: %d of %d: %s", bench.where, number, len(mine), trial)
        yield trial


def _work(trial: Trial) -> int:
    """About how much there is to do; what sees the raw input has no network."""
    return len(trial.rows) * (1 if trial.contender.startswith(RAW) else NETWORK)


def _done(bench: Bench, trial: Trial, work: Callable[[Trial], T]) -> T:
    try:
        with named(f"{bench.where}: {trial}"):
            return work(trial)
    except DataError as error:
        said = str(error)
        raise DataError(said if said.startswith(bench.where) else f"{bench.where}: {trial}: {said}") from error
