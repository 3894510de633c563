"""Rows of the scorecard and their error bars, by hand and by loops in float64."""

import json
import math
from dataclasses import replace

import pytest
import torch

from bigssl.transfer.scores import Score, clustered_mean, majority_hits, row_of


def bits(text: str) -> torch.Tensor:
    return torch.tensor([c == "1" for c in text])


def judged(**hits: str) -> dict:
    groups = [str(i) for i in range(len(hits["trained"]))]
    return row_of(Score("task", "of 8 images are right", {name: bits(text) for name, text in hits.items()}, groups,
                        chance=0.125, names={"raw": "raw pixels"}, facts={"classes": 8}))  # fmt: skip


def slow_mean(values: list[float], groups: list[str], weights: list[float]) -> tuple[float, float]:
    """Mean of the parts, and the standard error by the scatter of the sums of each group about it."""
    mean = sum(values) / sum(weights)
    names = sorted(set(groups))
    squares = 0.0
    for name in names:
        off = 0.0
        for value, group, weight in zip(values, groups, weights, strict=True):
            if group == name:
                off += value - mean * weight
        squares += off * off
    return mean, math.sqrt(len(names) / (len(names) - 1) * squares) / sum(weights)


@pytest.mark.parametrize("weighted", [False, True])
def test_means_and_errors_are_those_of_loops(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values, weights = torch.randn(47, generator=generator), torch.randint(1, 9, (47,), generator=generator)
    groups = [str(int(g)) for g in torch.randint(0, 13, (47,), generator=generator)]
    slow = slow_mean(values.tolist(), groups, weights.tolist() if weighted else [1.0] * 47)
    assert clustered_mean(values, groups, weights if weighted else None) == pytest.approx(slow, rel=1e-12)


def test_independent_queries_have_the_usual_standard_error() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    usual = values.double().std().item() / math.sqrt(50)
    assert clustered_mean(values, [str(i) for i in range(50)])[1] == pytest.approx(usual)


def test_the_same_query_twice_is_no_more_evidence() -> None:
    values, groups = torch.rand(30, generator=torch.Generator().manual_seed(0)), [str(i) for i in range(30)]
    once, twice = clustered_mean(values, groups), clustered_mean(torch.cat([values, values]), groups * 2)
    assert twice == pytest.approx(once)


def test_one_group_tells_nothing_of_the_error() -> None:
    row = row_of(Score("t", "of one", {"trained": bits("11"), "majority": bits("00")}, ["a", "a"]))
    assert row["gains"]["majority"] == {"difference": 1.0, "stderr": None} and row["stderr"] is None
    assert row["verdict"] == "ahead of all, but within noise of majority class"
    assert "100.0 ± unknown points more than" in row["sentence"]
    json.dumps(row, allow_nan=False)


def losses(seed: int) -> Score:
    """Random values, of which some are equal to trained's."""
    generator = torch.Generator().manual_seed(seed)
    trained = torch.randn(20, generator=generator, dtype=torch.float64)
    shifts = {"blind": 0.6, "random_net": 0.2, "raw": (0.0, 0.1, -0.1)[seed % 3]}
    values = {name: trained + shift * (1 + torch.rand(20, generator=generator, dtype=torch.float64))
              for name, shift in shifts.items()}  # fmt: skip
    return Score("loss", "a token", values | {"trained": trained}, [str(i % 7) for i in range(20)], chance=seed - 2.5,
                 weights=torch.ones(20), unit="nats", higher_is_better=False,
                 names={"blind": "token frequencies", "raw": "nothing"})  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_a_mirror_image_gets_the_same_verdict(seed: int) -> None:
    """Higher is better for the negative of a loss: nothing but signs and words of direction may change."""
    loss = losses(seed)
    gain = replace(loss, values={name: -each for name, each in loss.values.items()}, chance=-(loss.chance or 0.0),
                   higher_is_better=True)  # fmt: skip
    one, other = row_of(loss), row_of(gain)
    alike = {"passed", "verdict", "gains", "stderr", "raw_beats_random_net"} | {k for k in one if "trained_beats" in k}
    assert {name: one[name] for name in alike} == {name: other[name] for name in alike}
    assert one["trained"] == -other["trained"] and one["blind"] == -other["blind"]
    assert one["gains"]["blind"]["difference"] > 0.5 and "nats less than token frequencies" in one["sentence"]
    assert "nats more than token frequencies" in other["sentence"] and "lower is better" not in other["sentence"]


def test_a_loss_reads_as_one() -> None:
    values = {"trained": torch.tensor([8.0, 4.0]), "blind": torch.tensor([10.0, 11.0])}
    row = row_of(Score("words", "a token of 2 documents", values, ["a", "b"], weights=torch.tensor([2.0, 2.0]),
                       unit="nats", higher_is_better=False, names={"blind": "frequencies"}))  # fmt: skip
    assert (row["trained"], row["blind"], row["raw"], row["chance"]) == (3.0, 5.25, None, None)
    assert row["gains"]["blind"] == {"difference": 2.25, "stderr": pytest.approx(math.sqrt(2 * 2 * 2.5**2) / 4)}
    assert row["sentence"].startswith("3.00 nats a token of 2 documents (lower is better); ")
    assert row["sentence"].endswith("; 2.25 ± 1.25 nats less than frequencies.")
    assert row["verdict"] == "ahead of all, but within noise of frequencies" and row["blind_name"] == "frequencies"


def test_a_baseline_without_words_of_its_own_has_plain_ones() -> None:
    values = {name: torch.tensor([float(n), 1.0]) for n, name in enumerate(("blind", "random_net", "raw", "trained"))}
    row = row_of(Score("t", "of 2", values, ["a", "b"], unit="squares"))
    assert row["blind_name"] == "the best guess that does not see the input" and row["raw_name"] == "the raw input"
    assert "than the raw input" in row["sentence"]
    assert row["verdict"].endswith("within noise of a blind guess, random network, raw input")


@pytest.mark.parametrize("changes, said", [
    ({"values": {"raw": bits("10")}}, "t: values and names of raw; allowed: trained, and of majority, blind, random_n"),
    ({"values": {"trained": bits("10"), "mine": bits("10")}}, "t: values and names of trained, mine; allowed: trained"),
    ({"names": {"row": "raw pixels"}}, "t: values and names of trained, row; allowed"),
    ({"groups": ["a"]}, r"t: {'trained': 2} of 1 queries; allowed: one value of each query"),
    ({"weights": torch.ones(3)}, r"t: {'trained': 2, 'weights': 3} of 2 queries"),
])
def test_a_row_that_could_not_be_written_is_refused_where_it_is_made(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Score(**{"title": "t", "subject": "of 2", "values": {"trained": bits("10")}, "groups": ["a", "b"]} | changes)


def test_majority_is_the_best_constant_answer() -> None:
    assert majority_hits(["b", "a", "b"]).tolist() == [True, False, True]
    assert majority_hits(["b", "a"]).tolist() == [False, True]


def test_better_than_all() -> None:
    task = judged(trained="11111110", majority="10000000", random_net="01000000", raw="01010000")
    assert task["passed"] and task["verdict"] == "better than all"
    assert task["trained_beats_raw"] and task["trained_beats_random_net"] and task["raw_beats_random_net"]
    assert (task["trained"], task["raw"], task["random_net"], task["majority"]) == (0.875, 0.25, 0.125, 0.125)
    assert task["gains"]["raw"]["difference"] == 0.625 and task["classes"] == 8 and task["queries"] == 8
    assert task["sentence"].startswith("87.5 % of 8 images are right (guessing: 12.5 %); 75.0 ± ")
    assert "62.5 ± 18.3 points more than raw pixels" in task["sentence"]


def test_small_lead_is_called_noise() -> None:
    task = judged(trained="11111110", majority="00000000", random_net="00000000", raw="11111011")
    assert not task["passed"] and task["verdict"] == "not better than raw pixels", "a tie is no win"
    task = judged(trained="11111110", majority="00000000", random_net="00000000", raw="11111000")
    assert task["passed"] and task["verdict"] == "ahead of all, but within noise of raw pixels"


def test_no_raw_baseline_is_null() -> None:
    task = judged(trained="11110000", majority="00000000", random_net="00001111")
    assert task["raw"] is None and "raw_beats_random_net" not in task and "trained_beats_raw" not in task
    assert task["verdict"] == "not better than random network"


def test_below_chance_never_passes() -> None:
    task = judged(trained="00000000", random_net="00000000")
    assert not task["passed"] and task["verdict"].startswith("not better than")
    assert "exactly as many (± 0.0 points) as the same network" in task["sentence"]


@pytest.mark.parametrize("higher", [True, False])
def test_each_raw_baseline_has_to_be_beaten_and_the_best_one_counts(higher: bool) -> None:
    sign = 1 if higher else -1
    values = {"trained": bits("11111000"), "raw/words": bits("11000000"), "raw/letters": bits("11111011"),
              "random_net": bits("10000000")}  # fmt: skip
    values = {name: sign * each.double() for name, each in values.items()}
    row = row_of(Score("t", "of 8", values, list("abcdefgh"), higher_is_better=higher))
    assert not row["passed"] and not row["trained_beats_raw"] and row["verdict"] == "not better than letters"
    assert list(row["raws"]) == ["letters", "words"] and row["raw_name"] == "letters"
    assert row["raw"] == row["raws"]["letters"] == sign * 0.875
    assert row["gains"]["raw"] == row["gains"]["raw/letters"] != row["gains"]["raw/words"]
    assert "words" in row["sentence"] and "letters" in row["sentence"]
    del values["raw/letters"]
    row = row_of(Score("t", "of 8", values, list("abcdefgh"), higher_is_better=higher))
    assert row["passed"] and row["trained_beats_raw"] and row["raw_name"] == "words"
