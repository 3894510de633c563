"""The record of a run: dealing undone, lines cut back on resume and nowhere else, no half lines."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigssl.data.loading.ledger import Ledger, files, ledger_lines, whole_step


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 4))
def test_a_whole_step_undoes_the_dealing(accum: int, micro: int, other: int) -> None:
    pieces = {"a": [f"a{n}" for n in range(accum * micro)], "b": [f"b{n}" for n in range(accum * other)]}
    passes = [{name: piece[number::accum] for name, piece in pieces.items()} for number in range(accum)]
    assert whole_step(passes) == pieces


def test_one_source_has_no_name_and_several_have_a_line_each() -> None:
    assert ledger_lines(3, 1, {"img": ["é", "b"]}) == '{"step": 3, "rank": 1, "keys": ["\\u00e9", "b"]}\n'
    both = [json.loads(line) for line in ledger_lines(3, 1, {"b": ["x"], "a": ["y"]}).splitlines()]
    assert both == [
        {"step": 3, "rank": 1, "source": "a", "keys": ["y"]},
        {"step": 3, "rank": 1, "source": "b", "keys": ["x"]},
    ]


def record(folder: Path, world: int, start: int, stop: int, **options: Any) -> None:
    """What `world` ranks write that run from step `start` to `stop` and then die."""
    for rank in range(world):
        ledger = Ledger(folder, rank=rank, world=world, resume_step=start, **{"enabled": True, **options})
        for step in range(start, stop):
            ledger.write(step, [{"": [f"k{step}-{rank}", "x"]}])
        ledger.flush()
        ledger.close()


def steps(folder: Path) -> dict[int, list[int]]:
    return {
        rank: [json.loads(line)["step"] for line in path.read_text().splitlines()]
        for rank, path in sorted(files(folder).items())
    }


def test_a_resume_repeats_no_step_on_any_number_of_ranks(tmp_path: Path) -> None:
    record(tmp_path, 3, 0, 8)
    record(tmp_path, 3, 6, 7)
    assert steps(tmp_path) == dict.fromkeys(range(3), [0, 1, 2, 3, 4, 5, 6])
    record(tmp_path, 1, 4, 9)  # ranks 1 and 2 are gone, their steps before stay
    assert steps(tmp_path) == {0: [*range(9)], 1: [0, 1, 2, 3], 2: [0, 1, 2, 3]}
    record(tmp_path, 4, 5, 6)
    assert steps(tmp_path) == {0: [*range(6)], 1: [0, 1, 2, 3, 5], 2: [0, 1, 2, 3, 5], 3: [5]}


def test_a_run_without_a_ledger_leaves_no_stale_lines(tmp_path: Path) -> None:
    record(tmp_path, 2, 0, 5)
    record(tmp_path, 2, 3, 6, enabled=False)
    assert steps(tmp_path) == {0: [0, 1, 2], 1: [0, 1, 2]}
    record(tmp_path / "none", 1, 0, 3, enabled=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "tail", ['{"step": 3, "rank": 0, "keys": ["a', '{"st', "\0" * 80, '{"step": 3, "rank": 0, "keys": []}']
)
def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path, tail: str) -> None:
    record(tmp_path, 1, 0, 3)
    with (tmp_path / "ledger-rank0.jsonl").open("a") as file:
        file.write(tail)
    record(tmp_path, 1, 3, 5)
    assert steps(tmp_path) == {0: [0, 1, 2, 3, 4]}


def test_a_full_disk_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(tmp_path, rank=0, world=1, resume_step=0, enabled=True)
    ledger.write(0, [{"": ["a"]}])
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
    with caplog.at_level(logging.WARNING):
        ledger.write(1, [{"": ["b"]}])
    monkeypatch.undo()
    ledger.write(2, [{"": ["c"]}])
    ledger.close()
    assert "step 1 is missing" in caplog.text
    assert steps(tmp_path) == {0: [0, 2]}


def test_a_folder_that_refuses_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        record(tmp_path / "missing", 1, 0, 2)
    assert "cannot write" in caplog.text and "Training goes on" in caplog.text
