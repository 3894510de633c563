"""Is every collapse named, and nothing else? No times. Trains the CPU recipes (`launch/recipes/cpu`) on the demo's
pictures, each short:

    planted   without one of the task's `guards()`, and what PLANTED says: has the loop named a collapse, and when?
    healthy   as the recipe says: has it named one?

    python benchmarks/collapse.py                          # half an hour on 2 cores
    python benchmarks/collapse.py --only byol --seeds 1    # a piece; its rows take the place of those in the table

The rows go to results/collapse.csv, the table of all of them to results/collapse.md. Ends with 1 where one was missed,
or named in vain.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from measure import RESULTS, write_rows

from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.engine import loop, zero
from bigssl.engine.held import let_go
from bigssl.engine.plan import preflight
from bigssl.objectives.base import config_union, discover
from bigssl.report.collapses import collapses
from bigssl.report.metrics import read_metrics
from bigssl.transfer.discovery import evaluation_union

RECIPES = Path(__file__).parents[1] / "launch" / "recipes" / "cpu"
PLANTED = {"vicreg": {"covariance term": ["objective.covariance=0"]}}
"""By objective: what no instance can be told to leave out, as overrides of its recipe."""
FILE, TABLE = RESULTS / "collapse.csv", RESULTS / "collapse.md"
SETTINGS = ["probe=null", "evaluate=null", "log_every=1", "checkpoint.every=100000"]


def recipe_of(name: str, overrides: list[str]) -> Recipe:
    model = recipe_model(config_union(), evaluation_union())
    return load_recipe(RECIPES / f"{name}.yaml", [*SETTINGS, *overrides], model)


def trained(recipe: Recipe, without: str) -> list[tuple[int, str]]:
    """(step, sentence) of each collapse that the loop named. without: one of the guards, or nothing."""
    plan = preflight.plan(recipe, 1)
    if without:
        plan.objective.guards()[without]()
    notes: list[str] = []
    quiet = mock.patch.object(loop.ProgressBar, "note", lambda self, text: notes.append(text))
    with contextlib.redirect_stderr(io.StringIO()), quiet:
        loop.train(recipe, plan, zero.start(), None)
    let_go()
    found = collapses(read_metrics(recipe.folder))
    for each in found:
        began = f"{each.name}: collapsed since step {each.begin}:"
        assert any(note.startswith(began) for note in notes), f"not on the console: {began}"
    return [(each.begin, each.sentence) for each in found]


def cases(only: list[str], parts: list[str]) -> Iterator[tuple[str, str, str, list[str]]]:
    """(objective, part, guard, overrides of its recipe)"""
    for path in sorted(RECIPES.glob("*.yaml")):
        name = path.stem
        if only and name not in only:
            continue
        if "planted" in parts:
            guards = preflight.plan(recipe_of(name, ["out=unused"]), 1).objective.guards()
            yield from ((name, "planted", guard, []) for guard in guards)
            yield from ((name, "planted", what, overrides) for what, overrides in PLANTED.get(name, {}).items())
        if "healthy" in parts:
            yield name, "healthy", "", []


def row_of_case(name: str, part: str, guard: str, overrides: list[str], seed: int, args: argparse.Namespace
                ) -> dict[str, Any]:
    steps, batch = (args.steps, [f"batch.size={args.batch}"]) if part == "planted" else (args.healthy_steps, [])
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(name, [f"out={folder}/run", f"seed={seed}", f"steps={steps}", *batch, *overrides])
        found = trained(recipe, "" if overrides else guard)
    first = min(found, default=(None, ""))
    return {"objective": name, "part": part, "without": guard, "seed": seed, "steps": steps,
            "named": bool(found), "at": first[0] or "", "said": first[1]}  # fmt: skip


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the rows of other objectives and parts that were found before."""
    now = {(row["objective"], row["part"]) for row in rows}
    before = list(csv.DictReader(FILE.open())) if FILE.exists() else []
    kept = [row for row in before if (row["objective"], row["part"]) not in now]
    return sorted(kept + rows, key=lambda row: (row["objective"], row["part"], row["without"], int(row["seed"])))


def table_of(rows: list[dict[str, Any]]) -> str:
    """A line for each plant and each healthy recipe, and the counts."""
    lines = ["| objective | without | seeds | named | at step |", "|---|---|---|---|---|"]
    counts = {"planted": [0, 0], "healthy": [0, 0]}
    for key in dict.fromkeys((row["objective"], row["part"], row["without"]) for row in rows):
        same = [row for row in rows if (row["objective"], row["part"], row["without"]) == key]
        named = [row for row in same if str(row["named"]) == "True"]
        steps = ", ".join(str(row["at"]) for row in named) or "–"
        lines.append(f"| {key[0]} | {key[2] or 'nothing (healthy)'} | {len(same)} | {len(named)} | {steps} |")
        counts[key[1]][0] += len(named)
        counts[key[1]][1] += len(same)
    (named, planted), (vain, healthy) = counts["planted"], counts["healthy"]
    said = f"{named} of {planted} planted collapses were named; {vain} of {healthy} healthy runs were called collapsed."
    return "\n".join([*lines, "", said])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], choices=sorted(discover()), help="objectives; default all")
    parser.add_argument("--parts", nargs="*", default=["planted", "healthy"], choices=["planted", "healthy"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="of a planted run")
    parser.add_argument("--batch", type=int, default=64, help="of a planted run")
    parser.add_argument("--healthy-steps", type=int, default=100)
    args = parser.parse_args()
    rows = []
    for name, part, guard, overrides in cases(args.only, args.parts):
        for seed in range(args.seeds if part == "planted" else 1):
            rows.append(row_of_case(name, part, guard, overrides, seed, args))
            said = rows[-1]["said"] or "nothing named"
            print(f"{name}, without {guard or 'nothing'}, seed {seed}: {said}", flush=True)
    rows = merged(rows)
    write_rows(FILE, rows)
    TABLE.write_text(f"# Collapses, planted and not\n\n`python benchmarks/collapse.py`\n\n{table_of(rows)}\n")
    print(table_of(rows))
    return int(any((str(row["named"]) == "True") != (row["part"] == "planted") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
