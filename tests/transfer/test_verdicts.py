"""Verdicts and their error bars, by hand."""

import math

import pytest
import torch

from bigssl.transfer.verdicts import clustered_stderr, majority_hits, task_of


def bits(text: str) -> torch.Tensor:
    return torch.tensor([c == "1" for c in text])


def judged(**hits: str) -> dict:
    groups = [str(i) for i in range(len(hits["trained"]))]
    return task_of("task", "of 8 images are right", {name: bits(text) for name, text in hits.items()}, chance=0.125,
                 groups=groups, raw_name="raw pixels", facts={"classes": 8})


def test_independent_queries_have_the_usual_standard_error() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    usual = values.double().std(correction=0).item() / math.sqrt(50)
    assert clustered_stderr(values, [str(i) for i in range(50)]) == pytest.approx(usual)


def test_the_same_query_twice_is_no_more_evidence() -> None:
    values, groups = torch.rand(30, generator=torch.Generator().manual_seed(0)), [str(i) for i in range(30)]
    assert clustered_stderr(torch.cat([values, values]), groups * 2) == pytest.approx(clustered_stderr(values, groups))


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
    assert "62.5 ± 17.1 points more than raw pixels" in task["sentence"]


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
