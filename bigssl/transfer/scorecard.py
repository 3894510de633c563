"""What a pretrained network is worth, beside what costs no pretraining. Writes `scorecard.json` of a run:

    version, run, seed, device, seconds
    verdicts            {name: passed}
    tasks               {name: {...}} by the names that the recipe gives its evaluations (`evaluate.NAME`; NAME/ROW
                        where an evaluation has several rows); each with
        title, sentence, verdict       for people
        unit, higher_is_better         of the numbers; "share" for shares of the queries that are right, 0 to 1
        trained, stderr                mean over the queries and its standard error
        chance, majority, blind, random_net, raw   the same for the baselines; null where a baseline makes no sense
        raw_name, blind_name           what these are, in words
        raws                           {words: number} of all raw baselines, the best first: it is `raw`. That the very
                                       queries choose it is in its favour, and against the trained network
        gains                          {baseline: {difference, stderr}}: how far trained is ahead, paired by query; of
                                       each raw one, as raw/WORDS where there may be several, and as raw of the best
        trained_beats_BASELINE, raw_beats_random_net   bools, by the plain difference
        passed                         trained is ahead of chance and every baseline
        queries, classes, bank, gallery, k, documents, tokens   sizes and settings
    health              {backbone: {trained | random_net | WORDS of a raw baseline: {std, rankme, samples, of}}}, see
                        `bigssl.transfer.collapse`
    notes               how it was measured, in sentences

The random network is the exported architecture with fresh weights from the seed of the run (`Exported` in
`bigssl.transfer.subjects`). Dense features are centred by the mean of the bank before every cosine, alike for trained,
random and raw ones. A standard error that a single group cannot give is null.

All ranks take part (`bigssl.transfer.bench` says how, and what memory it takes); the main one writes.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bigssl.config.evaluate import Evaluation
from bigssl.files import write_atomic
from bigssl.report.health import collapse_said, health_said
from bigssl.report.values import CARD_VERSION, raws_said, shown, with_unit
from bigssl.transfer.bench import Bench
from bigssl.transfer.leaving import export
from bigssl.transfer.matrix import Scratch
from bigssl.transfer.scores import row_of
from bigssl.transfer.subjects import Exported
from bigssl.transfer.team import Team

FILE = "scorecard.json"
HEADINGS = ("task", "chance", "blind", "random net", "raw", "trained", "verdict")
NOTES = [
    "± is one standard error of the paired difference; queries that show the same item count as one.",
    "Features and raw vectors are centred by the mean of the bank before each cosine, all alike.",
]


def score(
    run_folder: Path, evaluate: Mapping[str, Evaluation], *, seed: int, device: str | torch.device = "cpu",
    team: Team | None = None, made: str = "", out: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluates `run_folder/export` as the recipe's `evaluate` section says; writes and returns the scorecard.

    A collective of all ranks: each gets the same card, but for the seconds.

    Args:
        team: the ranks, where they have met before.
        made: which recipe it is, and of what, in a sentence.
        out: where the scorecard is written; default the run folder.
    Raises:
        DataError, OSError: an export, shard, metadata field or class that is needed is not there, or a file cannot be
            read or written; of several ranks, AgreedError on each.
    """
    start, folder, team = time.monotonic(), Path(run_folder), team or Team()
    team.gather(lambda: export.recover(folder) if team.rank == 0 else None)
    subjects = Exported(folder / export.FOLDER, seed, _unlabelled(evaluate))
    fields = sorted({name for section in evaluate.values() for name in section.metadata()})
    with Scratch(out or folder, team) as scratch:
        bench = Bench(team, scratch, subjects, device, seed, fields, notes=subjects.notes, out=out or folder)
        tasks = told_apart({name: row_of(found) for name, found in bench.rows("evaluate", evaluate)})
    card = {
        "version": CARD_VERSION, "run": folder.resolve().name, "seed": seed, "device": str(device),
        "seconds": round(time.monotonic() - start, 1),
        "verdicts": {name: task["passed"] for name, task in tasks.items()},
        "tasks": tasks, "health": bench.checkup.health, "notes": [*([made] if made else []), *NOTES, *bench.notes],
    }  # fmt: skip
    team.gather(lambda: _write((out or folder) / FILE, card) if team.rank == 0 else None)
    return card


def told_apart(tasks: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by name; of those that share a title (two networks that are judged alike), the name stands behind it."""
    times = Counter(row["title"] for row in tasks.values())
    return {name: row | {"title": f"{row['title']} ({name})"} if times[row["title"]] > 1 else row
            for name, row in tasks.items()}  # fmt: skip


def _unlabelled(evaluate: Mapping[str, Evaluation]) -> dict[str, list[str]]:
    """Shards by backbone, without those of queries, that samples for BatchNorm may come from."""
    found: dict[str, list[str]] = {}
    for section in evaluate.values():
        for backbone, field in section.unlabelled().items():
            found.setdefault(backbone, []).append(getattr(section, field))
    return found


def _write(path: Path, card: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(card, indent=1, allow_nan=False) + "\n").encode())


def _cells(task: dict[str, Any]) -> tuple[str, ...]:
    unit, blind = task["unit"], task["blind"] if task["majority"] is None else task["majority"]
    numbers = [shown(value, unit) for value in (task["chance"], blind, task["random_net"], task["raw"])]
    return (task["title"], *numbers, with_unit(task["trained"], unit), task["verdict"])


def format_table(card: dict[str, Any]) -> str:
    """The scorecard as aligned plain text, one row per task, and the notes below it."""
    rows = [HEADINGS, *map(_cells, card["tasks"].values())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    last = len(HEADINGS) - 1
    lines = ["  ".join(cell.ljust(width) if i in (0, last) else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    said = health_said(card["health"]) + collapse_said(card["health"])
    said += [raws for task in card["tasks"].values() if (raws := raws_said(task))]
    return "\n".join([*lines, *said, *card["notes"]])
