"""Does every recipe of a laptop learn, and in what time: `python benchmarks/recipes.py [NAME ...] [--seeds N --jobs N]`

Each `launch/recipes/cpu/NAME.yaml` is run as its user runs it (`bigssl train`), with each seed, in a folder of its own.
Of a run count its seconds (evaluation included), each loss at its end beside its blind line, whether a collapse was
named, and every row of its scorecard: the trained network, the same at random weights, the raw input. A run that is in
the file already, of the same settings, is not repeated, so that the whole may be done in pieces; `--again` repeats.

Rows go to benchmarks/results/recipes_MACHINE.csv (of the GPU where there is one), the table over seeds between the
marks of docs/pretexts.md: of each recipe the machine with the most seeds. Exit status 1 where a recipe took more than 4
minutes (one at a time, on a CPU), ended above its blind line (but see GAMES) or was named collapsed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import yaml
from measure import RESULTS, device_name

from bigssl.report.blind import verdicts
from bigssl.report.collapses import collapses
from bigssl.report.metrics import read_measures, read_metrics

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "launch" / "recipes" / "cpu"
PAGE = ROOT / "docs" / "pretexts.md"
MARKS = "<!-- recipes -->\n", "<!-- end of recipes -->"
LIMIT = 240  # seconds
FIELDS = ("recipe", "settings", "seed", "what", "value", "blind", "random_net", "raw", "unit", "seconds", "jobs")
GAMES = {("inpainting", "loss generator")}
"""Losses of a side that may lose: where the discriminator finds all out, it is above ln 2."""
Row = dict[str, Any]


def run(name: str, seed: int, out: Path, overrides: Sequence[str], jobs: int) -> list[Row]:
    """The rows of one run beside `jobs` - 1 others. Raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "bigssl", "train", str(RECIPES / f"{name}.yaml"), "--ranks", "1", f"seed={seed}"]
    start = time.monotonic()
    subprocess.run([*command, f"out={out}", *overrides], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    common = {"recipe": name, "settings": settings(name), "seed": seed, "jobs": jobs,
              "seconds": round(time.monotonic() - start, 1)}  # fmt: skip
    return [common | row for row in (*_losses(out), *_scores(out))]


def settings(name: str) -> str:
    """A number that another recipe of this name has not: comments aside."""
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    return f"{zlib.crc32(yaml.safe_dump(values).encode()):08x}"


def _losses(out: Path) -> Iterator[Row]:
    rows = read_metrics(out)
    for each in verdicts(rows, read_measures(out)):
        yield {"what": f"loss {each.name}".strip(), "value": each.loss, "blind": each.blind, "unit": "loss"}
    yield {"what": "collapses", "value": len(collapses(rows)), "unit": "named"}


def _scores(out: Path) -> Iterator[Row]:
    card = json.loads((out / "scorecard.json").read_text())
    for name, task in card["tasks"].items():
        yield {"what": name, "value": task["trained"], "random_net": task["random_net"], "raw": task["raw"],
               "unit": task["unit"]}  # fmt: skip


def known(path: Path) -> list[Row]:
    """The rows of a file, their numbers as such."""
    if not path.exists():
        return []
    numbers = {"seed": int, "jobs": int} | dict.fromkeys(("value", "blind", "random_net", "raw", "seconds"), float)
    with path.open(newline="") as stream:
        return [{key: numbers.get(key, str)(text) if text else None for key, text in row.items() if key in FIELDS}
                for row in csv.DictReader(line for line in stream if not line.startswith("#"))]  # fmt: skip


def current(rows: list[Row]) -> list[Row]:
    """Without those of recipes that are gone or have other settings now."""
    now = {each.stem: settings(each.stem) for each in RECIPES.glob("*.yaml")}
    return [row for row in rows if now.get(row["recipe"]) == row["settings"]]


def write(path: Path, rows: list[Row], machine: str) -> None:
    with path.open("w", newline="") as stream:
        stream.write(f"# {machine}, torch {torch.__version__}\n")
        writer = csv.DictWriter(stream, FIELDS)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["recipe"], row["seed"], row["what"])))


def everywhere() -> list[Row]:
    """Of each recipe as it is now, the rows of the machine that ran most seeds of it."""
    chosen: dict[str, list[Row]] = {}
    for path in sorted(RESULTS.glob("recipes_*.csv")):
        machine = path.stem.removeprefix("recipes_").replace("-", " ")
        for name, rows in itertools.groupby(sorted(current(known(path)), key=lambda row: row["recipe"]),
                                            key=lambda row: row["recipe"]):  # fmt: skip
            mine = [row | {"machine": machine} for row in rows]
            if len({row["seed"] for row in mine}) > len({row["seed"] for row in chosen.get(name, [])}):
                chosen[name] = mine
    return [row for name in sorted(chosen) for row in chosen[name]]


def over_seeds(rows: list[Row], key: str) -> str:
    """Mean ± standard deviation over seeds; "" where there is no value."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return ""
    digits = (lambda x: f"{100 * x:.1f}") if rows[0]["unit"] == "share" else (lambda x: f"{x:.3g}")
    return f"{digits(statistics.fmean(values))} ± {digits(statistics.stdev(values))}" if len(values) > 1 else digits(
        values[0])  # fmt: skip


def table(rows: list[Row]) -> str:
    """A line for each row of a recipe's scorecard, and for its loss."""
    lines = ["| recipe | what | trained | random network | raw input | blind | seeds | seconds, on |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for recipe, what in dict.fromkeys((row["recipe"], row["what"]) for row in rows):
        mine = [row for row in rows if (row["recipe"], row["what"]) == (recipe, what)]
        if what == "collapses":
            continue
        unit = {"share": ", %", "loss": ""}.get(mine[0]["unit"], f", {mine[0]['unit']}")
        numbers = " | ".join(over_seeds(mine, key) for key in ("value", "random_net", "raw", "blind"))
        longest = f"{max(row['seconds'] for row in mine):.0f}, {mine[0]['machine']}" if what.startswith("loss") else ""
        beside = max(row.get("jobs") or 1 for row in mine)
        longest += f", {beside} at a time" if longest and beside > 1 else ""
        lines.append(f"| {recipe} | {what}{unit} | {numbers} | {len(mine)} | {longest} |")
    return "\n".join(lines) + "\n"


def missed(rows: list[Row]) -> list[str]:
    """What is not as promised, in sentences."""
    found = []
    for row in rows:
        where = f"{row['recipe']}, seed {row['seed']}"
        game = (row["recipe"], row["what"]) in GAMES
        if row["what"].startswith("loss") and row["value"] >= row["blind"] and not game:
            found.append(f"{where}: {row['what']} ended at {row['value']:.3g}, its blind line is {row['blind']:.3g}")
        if row["what"] == "collapses" and row["value"]:
            found.append(f"{where}: {row['value']:.0f} collapses were named")
    slow = {(row["recipe"], row["seconds"]) for row in rows if row["seconds"] > LIMIT and (row.get("jobs") or 1) == 1}
    return found + [f"{recipe}: {seconds:.0f} s, allowed are {LIMIT}" for recipe, seconds in sorted(slow)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes; default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; their seconds count for nothing then")
    parser.add_argument("--again", action="store_true", help="repeat what the file has")
    parser.add_argument("--set", nargs="*", default=[], metavar="a.b=c", help="overrides; nothing is written then")
    options = parser.parse_args()
    machine = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    cores = "" if torch.cuda.is_available() else f"-x{torch.get_num_threads()}"
    path = RESULTS / f"recipes_{'-'.join(machine.replace('(R)', '').split()[:2])}{cores}.csv"
    names = options.names or sorted(each.stem for each in RECIPES.glob("*.yaml"))
    rows = [] if options.set else current(known(path))
    there = set() if options.again else {(row["recipe"], row["seed"]) for row in rows}
    todo = [each for each in itertools.product(names, range(options.seeds)) if each not in there]

    def one(name: str, seed: int) -> list[Row]:
        with tempfile.TemporaryDirectory() as folder:
            return run(name, seed, Path(folder) / "run", options.set, options.jobs)

    failed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        asked = {pool.submit(one, *each): each for each in todo}
        for done in as_completed(asked):
            name, seed = asked[done]
            if (problem := done.exception()) is not None:
                failed.append(f"{name}, seed {seed}: {problem}")
                continue
            new = [{field: row.get(field) for field in FIELDS} for row in done.result()]
            print(table([row | {"machine": machine} for row in new]), flush=True)
            rows = [row for row in rows if (row["recipe"], row["seed"]) != (name, seed)] + new
            if not options.set:
                write(path, rows, machine)
    if not options.set:
        before, _, rest = PAGE.read_text().partition(MARKS[0])
        PAGE.write_text(before + MARKS[0] + table(everywhere()) + MARKS[1] + rest.partition(MARKS[1])[2])
    bad = failed + missed([row for row in rows if row["recipe"] in names])
    print("\n".join(bad))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
