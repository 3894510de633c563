"""A collapse is said once when it begins and once when it ends."""

from __future__ import annotations

import math

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
    assert [(each.name, each.begin, each.end, each.spread) for each in found] == [
        ("a", 3, 7, 0.3), ("a", 10, None, 0.02), ("b", 10, None, 0.04)
    ]  # fmt: skip
    assert "\n".join(each.sentence for each in found).count("Whatever the loss says") == 2
