"""The whole matrix of the contract: every task × ZeRO stage × ranks × precision × passes a step, each against plain
PyTorch and with both resumes, into the table of docs/contract.md.

    bash launch/test.sh --matrix [TASK ...] [--again] [pytest's arguments]

Goes on where it was interrupted: what has passed stands in benchmarks/results/contract_matrix.jsonl, and is run again
only with --again. CI runs a covering design of it (`contract_runs.covering`). Ends with pytest's exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import contract_runs as runs
from contract_runs import EVERY, Cell
from pages import write_section

from bigssl.objectives.base import discover

TEST = "tests/objectives/test_contract_runs.py::test_a_run_is_the_plain_loop_and_goes_on_anywhere"
ROWS = Path(__file__).parents[2] / "benchmarks" / "results" / "contract_matrix.jsonl"
COLUMNS = [(world, precision) for world in (1, 2) for precision in ("fp32", "bf16")]
Found = dict[tuple[str, Cell], tuple[float, float, str, bool]]


def read() -> Found:
    """(curve, state, where, whether it passed) of each cell that has been run, the last run of each."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    width = len(Cell._fields)
    rows = [json.loads(line) for line in lines]
    return {(name, Cell(*rest[:width])): tuple(rest[width:]) for name, *rest in rows}  # type: ignore[misc]


def keep(found: Found) -> None:
    """One line a cell, sorted."""
    ordered = sorted(found.items(), key=lambda item: (item[0][0], EVERY.index(item[0][1])))
    ROWS.write_text("".join(json.dumps([name, *cell, *row]) + "\n" for (name, cell), row in ordered))


def table(found: Found) -> str:
    """A row a task, a column for each number of ranks and precision: the largest differences of its cells. Allowed is
    what stands in the first row for one pass a step, √2 times as much for two (and what `allowed` says)."""
    heads = [f"{world} rank{'s' * (world > 1)}, {precision}" for world, precision in COLUMNS]
    fine = [runs.SAME[precision] for _, precision in COLUMNS]
    bounds = [f"{each:.0e}, {runs.KINKS * each:.0e}" for each in fine]
    out = [f"| task | {' | '.join(heads)} | cells |", "|---" * 6 + "|"]
    out.append(f"| *allowed, of one pass* | {' | '.join(bounds)} | |")
    for task in sorted({task for task, _ in found}):
        mine = {cell: row for (name, cell), row in found.items() if name == task}
        entries = [largest([row for cell, row in mine.items() if (cell.world, cell.precision) == c]) for c in COLUMNS]
        passed = sum(ok for *_, ok in mine.values())
        out.append(f"| {task} | {' | '.join(entries)} | {passed} of {len(EVERY)} |")
    passed, whole = sum(ok for *_, ok in found.values()), len(EVERY) * len(discover())
    said = f"{passed} of {whole} cells pass, {len(found) - passed} fail, {whole - len(found)} were not run."
    return "\n".join([*out, "", said])


def largest(rows: list[tuple[float, float, str, bool]]) -> str:
    if not rows:
        return "not run"
    if not all(ok for *_, ok in rows):
        return "**fails**"
    return ", ".join(f"{max(row[number] for row in rows):.0e}" for number in (0, 1))


def main(arguments: list[str]) -> int:
    tasks = [each for each in arguments if each in discover()] or sorted(discover())
    rest = [each for each in arguments if each not in discover() and each != "--again"]
    found = read()
    done = set() if "--again" in arguments else {key for key, row in found.items() if row[-1]}
    todo: list[Any] = [[task, *cell] for task in tasks for cell in EVERY if (task, cell) not in done]
    if not todo:
        print("all of it stands in the table; --again runs it once more")
        return 0
    os.environ |= {"BIGSSL_CONTRACT_MATRIX": str(ROWS), "BIGSSL_CONTRACT_TODO": json.dumps(todo)}
    try:
        return subprocess.call([sys.executable, "-m", "pytest", "-q", TEST, *rest])
    finally:  # also where it is interrupted
        keep(read())
        text = table(read())
        write_section("matrix", text)
        print(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
