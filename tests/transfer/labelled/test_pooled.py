"""Measures of all queries together, and their error bars, by brute force."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from statistics import fmean, stdev

import pytest
import torch

from bigssl.transfer.labelled.pooled import RESAMPLES, PooledScore, resamples
from bigssl.transfer.labelled.rows import scored
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.measures.errors import Edits, error_rate
from bigssl.transfer.scores import row_of

GROUPS = ["a", "b", "a", "c", "d", "b", "e"]

RAWS = ("raw/x", "raw/y")


def ratio(records: Sequence[tuple[float, float]]) -> float:
    """A share of sums: no mean of the records."""
    return sum(one for one, _ in records) / sum(other for _, other in records)


def records(seed: int) -> list[tuple[float, float]]:
    return torch.rand(len(GROUPS), 2, generator=torch.Generator().manual_seed(seed)).double().add(0.1).tolist()


def test_errors_are_the_deviation_over_drawn_groups_the_same_for_all() -> None:
    of = {"trained": [records(0), records(1)], "random_net": [records(2), records(3)], "blind": [records(4)]}
    row = row_of(PooledScore("t", "of 7", of, ratio, GROUPS, unit="ratio"))
    draws = resamples(GROUPS)
    assert len(draws) == RESAMPLES
    for rows in draws:
        count = {group: rows.count(GROUPS.index(group)) for group in set(GROUPS)}
        assert sum(count.values()) == 5, "as many groups as there are"
        assert all(rows.count(at) == count[group] for at, group in enumerate(GROUPS)), "groups come whole"
    assert len({tuple(rows) for rows in draws}) > 90
    drawn = {name: [fmean(ratio([each[at] for at in rows]) for each in seeds) for rows in draws]
             for name, seeds in of.items()}  # fmt: skip
    assert row["trained"] == pytest.approx(fmean(map(ratio, of["trained"])))
    assert row["stderr"] == pytest.approx(stdev(drawn["trained"]))
    for name in ("random_net", "blind"):
        gaps = [one - other for one, other in zip(drawn["trained"], drawn[name], strict=True)]
        expected = {"difference": row["trained"] - row[name], "stderr": stdev(gaps)}
        assert row["gains"][name] == pytest.approx(expected)
    assert set(row) == set(row_of(PooledScore("t", "of 7", of, ratio, GROUPS))) and row["queries"] == 7


def test_the_error_of_a_mean_is_that_of_the_formula() -> None:
    """Within the noise of 100 draws, about 7 %."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    row = row_of(PooledScore("t", "", {"trained": [values]}, fmean, [str(i) for i in range(400)], unit="x"))
    assert row["stderr"] == pytest.approx(stdev(values) / math.sqrt(400), rel=0.2)


def test_one_group_tells_nothing_of_the_error_of_a_measure() -> None:
    row = row_of(PooledScore("t", "", {"trained": [[1.0, 2.0]], "raw": [[0.0, 1.0]]}, fmean, ["a", "a"]))
    assert row["stderr"] is None and row["gains"]["raw"] == {"difference": 1.0, "stderr": None}
    json.dumps(row, allow_nan=False)


def test_a_draw_that_has_no_measure_says_nothing_of_the_error() -> None:
    """Two speakers, one of whom says nothing: where he is drawn alone there is no word to be wrong."""
    heard = {"trained": [[Edits(1, 4), Edits(1, 0)]], "raw": [[Edits(3, 4), Edits(1, 0)]]}
    row = row_of(PooledScore("t", "", heard, error_rate, ["a", "b"], higher_is_better=False))
    assert row["trained"] == 0.5 and row["gains"]["raw"]["difference"] == 0.5 and 0 < row["stderr"] < 0.5
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize("of, said", [
    ({"raw": [[1.0]]}, "t: values and names of raw; allowed: trained"),
    ({"trained": [[1.0, 2.0]]}, r"t: {'trained': \[2\]} of 1 queries; allowed: one record of each query"),
    ({"trained": [[1.0], []]}, r"t: {'trained': \[0, 1\]} of 1 queries"),
])  # fmt: skip
def test_records_that_make_no_row_are_refused(of: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PooledScore("t", "", of, fmean, ["a"])


def outcome(contender: str, fraction: float, seed: int) -> tuple[Trial, torch.Tensor]:
    hits = torch.rand(20, generator=torch.Generator().manual_seed(hash((contender == "trained", fraction, seed)) % 97))
    return Trial(contender, fraction, seed, torch.arange(int(200 * fraction))), hits < fraction


@pytest.mark.parametrize("pooled", [False, True])
def test_a_row_says_what_each_seed_and_each_share_of_the_labels_gave(pooled: bool) -> None:
    """The same whether the mean is taken by the row or by a measure."""
    found = dict(outcome(*each) for each in [(c, f, s) for c in ("random_net", "raw/x", "raw/y", "trained")
                                             for f in (0.1, 0.5) for s in (0, 1, 2)])  # fmt: skip
    mean = {trial: hits.double().mean().item() for trial, hits in found.items()}
    majority = torch.arange(20) < 7
    if pooled:
        score = scored("t", "of 20", {trial: hits.tolist() for trial, hits in found.items()}, list(map(str, range(20))),
                       fixed={"majority": majority.tolist()}, measure=lambda hits: fmean(map(float, hits)))  # fmt: skip
    else:
        score = scored("t", "of 20", found, list(map(str, range(20))), fixed={"majority": majority})
    row = row_of(score)
    last = {name: fmean(m for t, m in mean.items() if t.contender == name and t.fraction == 0.5) for name in RAWS}
    best = max(RAWS, key=lambda name: last[name])
    assert row["majority"] == pytest.approx(0.35)
    for name in ("random_net", "raw/x", "raw/y", "trained"):
        numbers = [mean[t] for t in found if (t.contender, t.fraction) == (name, 0.5)]
        assert row["seeds"][name] == pytest.approx(numbers) and row["std"][name] == pytest.approx(stdev(numbers))
        for point, fraction in zip(row["curve"], (0.1, 0.5), strict=True):
            numbers = [mean[t] for t in found if (t.contender, t.fraction) == (name, fraction)]
            assert (point["fraction"], point["samples"]) == (fraction, int(200 * fraction))
            assert point["means"][name] == pytest.approx(fmean(numbers))
            assert point["stds"][name] == pytest.approx(stdev(numbers))
    assert row["trained"] == pytest.approx(fmean(row["seeds"]["trained"])) == row["curve"][-1]["means"]["trained"]
    assert row["raw"] == pytest.approx(fmean(row["seeds"][best])) and row["seeds"]["raw"] == row["seeds"][best]
    assert f" ± {100 * row['std']['trained']:.1f} points over 3 seeds of 20" in row["sentence"]
    json.dumps(row, allow_nan=False)


def test_one_seed_has_no_deviation() -> None:
    found = dict(outcome("trained", 0.5, seed) for seed in (0,))
    row = row_of(scored("t", "of 20", found, list(map(str, range(20)))))
    assert row["std"] == {"trained": None} and row["curve"][0]["stds"] == {"trained": None}
    assert "% with one seed of 20" in row["sentence"]


@pytest.mark.parametrize("pooled", [False, True])
def test_a_gain_that_differs_from_seed_to_seed_is_no_sure_one_however_many_queries(pooled: bool) -> None:
    """10,000 queries tell the difference of these networks well, and nothing of the next seed."""
    rates = {"trained": (0.9, 0.5, 0.7), "random_net": (0.55, 0.75, 0.65), "raw/once": (0.1,)}
    count = 1000 if pooled else 10_000
    hits = {Trial(name, 1.0, seed, torch.arange(9)): torch.arange(count) < rate * count
            for name, each in rates.items() for seed, rate in enumerate(each)}  # fmt: skip
    how = {"measure": lambda records: fmean(map(float, records))} if pooled else {}
    found = {trial: each.tolist() for trial, each in hits.items()} if pooled else hits
    majority = torch.arange(count) < 0.2 * count
    fixed = {"majority": majority.tolist() if pooled else majority}
    score = scored("t", "of them", found, list(map(str, range(count))), fixed=fixed, **how)
    row = row_of(score)
    gaps = [one - other for one, other in zip(rates["trained"], rates["random_net"], strict=True)]
    over_seeds = {"random_net": stdev(gaps), "raw/once": stdev(rates["trained"]), "majority": stdev(rates["trained"])}
    for name, spread in over_seeds.items():
        expected = math.hypot(score.ahead(name)[1], spread / math.sqrt(3))
        assert row["gains"][name]["stderr"] == pytest.approx(expected)
    assert row["stderr"] == pytest.approx(math.hypot(score.error(), stdev(rates["trained"]) / math.sqrt(3)))
    assert row["verdict"] == "ahead of all, but within noise of random network"
