"""Which samples a trial may see."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.transfer.labelled.section import Labelled
from bigssl.transfer.labelled.trials import Trial, dealt, held_out, outcomes, trials
from bigssl.transfer.team import Team

SHARES = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=4, unique=True).map(sorted)


def section(fractions: list[float], seeds: int = 2) -> Labelled:
    return Labelled(backbone="image", train="x", queries="y", fractions=fractions, seeds=seeds)


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=80), SHARES, st.integers(0, 5))
def test_smaller_shares_are_part_of_larger_ones_and_every_class_keeps_its_own(
    classes: list[str], fractions: list[float], seed: int
) -> None:
    found = trials(section(fractions), ["trained", "random_net"], len(classes), classes, seed=seed)
    assert len(found) == len(set(found)) == 2 * 2 * len(fractions)
    rows = {(t.contender, t.fraction, t.seed): t.rows.tolist() for t in found}
    for (contender, fraction, each), chosen in rows.items():
        assert chosen == rows["trained", fraction, each] == sorted(set(chosen)), "all contenders see the same"
        counts = Counter(classes[row] for row in chosen)
        for name, count in Counter(classes).items():
            assert counts[name] == max(1, math.floor(fraction * count + 0.5))
        if fraction == 1.0:
            assert chosen == list(range(len(classes)))
        assert all(set(chosen) <= set(rows[contender, larger, each]) for larger in fractions if larger > fraction)


def test_other_seeds_see_other_samples() -> None:
    """Of the run, and of the trial; also where nothing has a class."""
    found = {(seed, t.seed): tuple(t.rows.tolist())
             for seed in (0, 1) for t in trials(section([0.1]), ["trained"], 200, seed=seed)}  # fmt: skip
    assert len(set(found.values())) == 4 and {len(rows) for rows in found.values()} == {20}


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"),
                                   np.linalg.LinAlgError("Singular matrix"), ZeroDivisionError("division by zero")])
def test_what_libraries_raise_is_an_error_of_that_trial(error: Exception) -> None:
    """It would end this rank alone, and with it the rows of all other evaluations."""
    bench = SimpleNamespace(team=Team(), where="evaluate.mine", notes=[])

    def work(trial: Trial) -> None:
        if trial.contender == "random_net":
            raise error

    said = str(error).partition("\n")[0]
    with pytest.raises(DataError, match=rf"^evaluate.mine: random_net with 50 % of the samples \(2\), seed 0: "
                                        rf"{type(error).__name__}: {said}$"):  # fmt: skip
        outcomes(bench, trials(section([0.5], 1), ["trained", "random_net"], 4, seed=0), work)  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_have_nearly_equal_work_whatever_the_numbers_of_contenders_seeds_and_shares(world: int) -> None:
    """One of three ranks had every trial on all samples where there were three shares and three contenders."""
    planned = trials(section([0.01, 0.1, 1.0], 3), ["random_net", "trained"], 300, seed=0)
    parts = dealt(planned, world)
    assert sorted(planned.index(each) for part in parts for each in part) == list(range(len(planned)))
    assert all(part == sorted(part, key=planned.index) for part in parts)
    load = [sum(len(trial.rows) for trial in part) for part in parts]
    assert max(load) - min(load) <= 300, "one trial at most"
    assert max(load) <= math.ceil(6 / world) * 300 + 6 * 33


def test_notes_of_a_trial_are_those_of_all_ranks() -> None:
    notes: list[str] = ["first"]
    others = [([], ["of rank 1", "of both"])]
    team = SimpleNamespace(rank=0, world=2, gather=lambda make: [make(), *others])
    bench = SimpleNamespace(team=team, where="", notes=notes, note=notes.append)
    planned = trials(section([1.0], 1), ["trained"], 4, seed=0)
    outcomes(bench, planned, lambda trial: notes.append("of both"))  # type: ignore[arg-type]
    assert notes == ["first", "of both", "of rank 1"]


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.floats(0.05, 0.95))
def test_samples_to_choose_on_are_some_of_each_class_and_never_all(classes: list[str], share: float) -> None:
    held = held_out(classes, share, (0, 0))
    counts, chosen = Counter(classes), Counter(classes[row] for row in held.tolist())
    for name, count in counts.items():
        taken = chosen[name]
        assert taken == (0 if count == 1 else min(count - 1, max(1, math.floor(share * count + 0.5)))), (name, count)
    assert held.dtype == torch.int64
