"""The whole matrix of the contract: every task × ZeRO stage × ranks × precision, into the table of docs/contract.md.

    bash launch/test.sh --matrix [pytest's arguments]

CI runs a covering design of it (`contract_runs.covering`). Ends with pytest's exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from contract_runs import CELLS, Cell
from pages import write_section

TEST = "tests/objectives/test_contract_runs.py::test_a_run_is_the_plain_loop_and_goes_on_anywhere"
COLUMNS = [(world, precision) for world in (1, 2) for precision in ("fp32", "bf16")]


def table(lines: list[list[Any]]) -> str:
    """A row for each task and stage, a column for each number of ranks and precision."""
    found = {(task, Cell(*cell)): (curve, state, ok) for task, *cell, curve, state, _, ok in lines}
    heads = [f"{world} rank{'s' * (world > 1)}, {precision}" for world, precision in COLUMNS]
    out = [f"| task | ZeRO | {' | '.join(heads)} |", "|---" * 6 + "|"]
    for task, stage, persistence in dict.fromkeys((task, *cell[:2]) for task, cell in found):
        entries = [found.get((task, Cell(stage, persistence, *column))) for column in COLUMNS]
        words = [f"{e[0]:.0e}, {e[1]:.0e}" if e and e[2] else "**fails**" if e else "not run" for e in entries]
        place = f"{stage}" + ("" if persistence is None else f", threshold {persistence}")
        out.append(f"| {task} | {place} | {' | '.join(words)} |")
    whole = len(CELLS) * len({task for task, _ in found})
    return "\n".join([*out, "", f"{sum(ok for _, _, ok in found.values())} of {whole} cells pass."])


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        os.environ["BIGSSL_CONTRACT_MATRIX"] = str(rows)
        code = subprocess.call([sys.executable, "-m", "pytest", "-q", TEST, *arguments])
        if rows.exists():
            write_section("matrix", table([json.loads(line) for line in rows.read_text().splitlines()]))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
