"""A collapse is said once when it begins and once when it ends."""

from __future__ import annotations

import math

import pytest

from bigssl.report.collapses import CollapseWatch, collapses


def row(step: int, **spreads: float) -> dict[str, float]:
    return {"step": step, "loss": 0.0, **{f"spread/{name}": value for name, value in spreads.items()}}


RUN = [row(step, a=a, b=0.9) for step, a in enumerate([0.6, 0.15, 0.05, 0.01, 0.12, 0.19, 0.3, 0.15, 0.6], start=1)]


def test_beginning_and_end_are_said_once() -> None:
    watch = CollapseWatch()
    said = {int(each["step"]): watch.observe(int(each["step"]), each) for each in RUN}
    assert {step for step, texts in said.items() if texts} == {3, 7}
    assert len(said[3]) == 1 and said[3][0].startswith("a: collapsed since step 3: ") and "spread 0.050" in said[3][0]
    assert said[7] == ["a: collapsed at step 3, no longer at step 7"]


def test_a_resume_says_nothing_twice_and_forgets_nothing() -> None:
    watch = CollapseWatch(RUN[:4])
    assert watch.observe(5, row(5, a=0.05)) == []
    assert watch.observe(6, row(6, a=0.5)) == ["a: collapsed at step 3, no longer at step 6"]


def test_a_run_that_ends_collapsed_says_so_of_each() -> None:
    found = collapses([*RUN, row(10, a=0.02, b=0.03), row(11, a=math.nan, b=0.04)])
    assert [(each.name, each.begin, each.end, each.seen.partition("spread ")[2][:5]) for each in found] == [
        ("a", 3, 7, "0.300"), ("a", 10, None, "0.020"), ("b", 10, None, "0.040")
    ]  # fmt: skip
    assert "\n".join(each.sentence for each in found).count("Whatever the loss says") == 2


def test_features_that_a_probe_finds_in_few_directions_are_named() -> None:
    """2.0 of 128 are nothing; 3.1 of 40 are what an untrained PatchTST has, 13.5 of 128 an untrained ViT."""
    ranks = {10: 42.5, 20: 2.0, 30: 3.0, 40: 13.5}
    watch = CollapseWatch()
    said = {}
    for step in range(5, 45, 5):
        health = {"health/text/rankme": ranks[step], "health/text/of": 128.0, "health/text/std": 0.01,
                  "health/net/rankme": 3.1, "health/net/of": 40.0} if step in ranks else {}  # fmt: skip
        said[step] = watch.observe(step, {"step": step, "loss": 1.0} | health)
    assert {step for step, texts in said.items() if texts} == {20, 40}
    assert said[20] == [
        "directions of text: collapsed since step 20: they are about 2.0 of 128 (RankMe; 42.5 at first). Whatever the "
        "loss says, next to nothing of the input is in them"
    ]
    assert said[40] == ["directions of text: collapsed at step 20, no longer at step 40"]


@pytest.mark.parametrize(("first", "rank", "fallen"), [
    (18.0, 2.0, True), (18.0, 3.5, False), (171.0, 12.2, False), (171.0, 3.9, True),
])  # fmt: skip
def test_embeddings_are_compared_with_what_they_were_at_first(first: float, rank: float, fallen: bool) -> None:
    """Samples may differ in one direction, which no spread shows; a tenth of what an untrained network had is lost. Of
    fewer than eight that are possible nothing is said."""
    rows = [{"step": step, "spread/z": 0.9, "health/z/rankme": value, "health/z/of": 256.0, "health/pair/rankme": 1.0,
             "health/pair/of": 2.0} for step, value in ((1, first), (20, 15.0), (40, rank))]  # fmt: skip
    assert [(each.name, each.begin) for each in collapses(rows)] == [("directions of z", 40)] * fallen
    watch = CollapseWatch(rows[:2])  # a resumed run knows the first
    assert bool(watch.observe(40, rows[2])) == fallen


@pytest.mark.parametrize(("rank", "of", "fallen"), [
    (13.0, 2048, False), (4.0, 2048, False), (2.0, 2048, True), (1.0, 2048, True), (2.0, 128, True), (1.2, 40, True),
    (3.1, 40, False),
])  # fmt: skip
def test_a_wide_network_that_spans_its_classes_has_not_collapsed(rank: float, of: int, fallen: bool) -> None:
    row = {"step": 1, "loss": 1.0, "health/net/rankme": rank, "health/net/of": float(of)}
    assert [each.name for each in collapses([row])] == ["directions of net"] * fallen
