"""What runs ended with, a line for each: `python benchmarks/ends.py FOLDER ...`

Losses beside their blind lines, samples a second and the share of time that waited for data (medians of the second half
of the records, where caches are warm), and the rows of the scorecard. Exit status 1 where a run has no finite loss.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from bigssl.report.blind import verdicts
from bigssl.report.metrics import read_measures, read_metrics


def line(folder: Path) -> tuple[str, bool]:
    """What is to be said of a run, and whether its losses are finite."""
    rows = read_metrics(folder)
    losses = verdicts(rows, read_measures(folder))
    said = [folder.name, *(f"{each.name} {each.loss:.4g} (blind {each.blind:.4g})".strip() for each in losses)]
    for name, unit in (("speed/samples_per_s", "samples/s"), ("speed/data_wait", "waiting for data")):
        values = [row[name] for row in rows[len(rows) // 2 :] if name in row]
        said += [f"{statistics.median(values):.4g} {unit}"] if values else []
    card = folder / "scorecard.json"
    for name, task in json.loads(card.read_text())["tasks"].items() if card.exists() else ():
        said.append(f"{name} {task['trained']:.4g} (random {task['random_net']}, raw {task['raw']})")
    return "; ".join(said), bool(losses)


def main() -> int:
    found = [line(Path(folder)) for folder in sys.argv[1:]]
    print("\n".join(said for said, _ in found))
    return int(not all(fine for _, fine in found))


if __name__ == "__main__":
    sys.exit(main())
