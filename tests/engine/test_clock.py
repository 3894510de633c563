"""Shares of a lap, and what a run says whose loader is slower than its model."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bigssl.engine import clock
from bigssl.objectives.simclr import Simclr


def test_shares_of_a_lap(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    timer = clock.Clock()
    for stage, seconds in (("data", 3.0), ("forward", 2.0), ("backward", 3.0), ("optimizer", 1.0), ("probe", 10.0)):
        with timer(stage):
            now[0] += seconds
    now[0] += 1.0
    assert timer.lap() == pytest.approx({"wall": 10.0, "data_wait": 0.3, "driver_overhead": 0.1})
    now[0] += 2.0
    assert timer.lap() == pytest.approx({"wall": 2.0, "data_wait": 0.0, "driver_overhead": 1.0})


def observe(wait: clock.DataWait, *shares: float) -> list[str]:
    return [wait.observe({"wall": 10.0, "data_wait": share}) for share in shares]


def test_a_slow_loader_is_said_once() -> None:
    wait = clock.DataWait(2)
    first = observe(wait, 1.0, 0.3, 0.5, 0.9, 0.9)
    assert first[:2] == first[3:] == ["", ""]
    assert first[2].startswith("the loader is slower than the model: data wait 40 % of the last 20 s; raise")
    assert "data.workers (now 2)" in first[2]
    assert observe(wait, 0.0, 0.25, 0.9, 0.0) == [""] * 4  # 12 %: not recovered
    assert observe(wait, 0.0, 0.0) == ["", ""]
    assert "data wait 45 %" in observe(wait, 0.9, 0.0)[1]


def test_a_pause_of_one_step_is_no_reason() -> None:
    wait = clock.DataWait(2)
    laps: list[dict[str, Any]] = [{"wall": 1.0, "data_wait": 1.0}] + [{"wall": 1.0, "data_wait": 0.0}] * 40
    assert [wait.observe(lap) for lap in laps] == [""] * 41


@pytest.mark.distributed
def test_a_run_says_that_its_loader_is_slow(
    tmp_path: Any, ranks: Any, recipe: Any, train: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def slow(self: Any, *sample: Any) -> Any:
        time.sleep(0.1)
        return prepare(self, *sample)

    prepare = Simclr.prepare
    monkeypatch.setattr(Simclr, "prepare", slow)
    monkeypatch.setattr(clock.DataWait, "SPAN", 1.0)
    ranks(train, 1, recipe(tmp_path / "run"))
    assert "the loader is slower than the model: data wait" in capfd.readouterr().err
