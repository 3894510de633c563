"""What a pretrained network is worth, beside what costs no pretraining. Writes `scorecard.json` of a run:

    version, run, seed, device, seconds
    verdicts            {name: passed}
    tasks               {name: {...}} by the names that the recipe gives its evaluations (`evaluate.NAME`; NAME/ROW
                        where an evaluation has several rows); each with
        title, sentence, verdict       for people
        unit, higher_is_better         of the numbers; "share" for shares of the queries that are right, 0 to 1
        trained, stderr                mean over the queries and its standard error; of what is repeated, over queries
                                       and seeds: √(that over queries² + variance over the seeds / their number), as is
                                       that of a gain, paired by query and by seed
        chance, majority, blind, random_net, raw   the same for the baselines; null where a baseline makes no sense
        raw_name, blind_name           what these are, in words
        raws                           {words: number} of all raw baselines, the best first: it is `raw`. That the very
                                       queries choose it is in its favour, and against the trained network
        gains                          {baseline: {difference, stderr}}: how far trained is ahead, paired by query; of
                                       each raw one, as raw/WORDS where there may be several, and as raw of the best
        trained_beats_BASELINE, raw_beats_random_net   bools, by the plain difference
        seeds, std      of what is repeated: {contender: [number of each seed]}, and {contender: their sample standard
                        deviation, null for one}, of the last point of the curve; {} of what is not
        curve           [{fraction, samples, means: {contender: number}, stds: {contender: deviation or null}}], the
                        few-label curve, by share of the samples that are learnt from; [] of what learns nothing.
                        Contenders are random_net, trained and raw/WORDS; "raw" is the one that counts
        passed                         trained is ahead of chance and every baseline
        queries, classes, bank, gallery, k, documents, tokens   sizes and settings
    failed              {name: the error} of evaluations, and rows, that are not there. The card is written after each
                        evaluation: of one that was interrupted, those to come are here, as "not evaluated yet"
    health              {backbone: {trained | random_net | WORDS of a raw baseline: {std, rankme, samples, of, span,
                        uniformity, uniform, spread}}}, see `bigssl.transfer.collapse`
    notes               how it was measured, in sentences

The random network is the exported architecture with fresh weights from the seed of the run (`Exported` in
`bigssl.transfer.subjects`). Dense features are centred by the mean of the bank before every cosine, alike for trained,
random and raw ones. A standard error that a single group cannot give is null.

All ranks take part (`bigssl.transfer.bench` says how, and what memory it takes); the main one writes.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bigssl.config.evaluate import Evaluation
from bigssl.data.errors import DataError
from bigssl.files import DiskFull, write_atomic
from bigssl.report.health import collapse_said, health_said
from bigssl.report.values import CARD_VERSION, SHARE, curve_rows, raws_said, shown, with_std
from bigssl.transfer.arriving.folders import below
from bigssl.transfer.bench import Bench
from bigssl.transfer.leaving import export
from bigssl.transfer.matrix import Scratch
from bigssl.transfer.scores import ScoreRow, row_of
from bigssl.transfer.subjects import Exported
from bigssl.transfer.team import AgreedError, Team, in_a_line, named

log = logging.getLogger("bigssl")
LOG = logging.getLogger(__name__)  # of progress
FILE = "scorecard.json"
WAITING = "not evaluated yet"
HEADINGS = ("task", "chance", "blind", "random net", "raw", "trained", "verdict")
REPEATED = "± behind a number is the standard deviation over the seeds of what is repeated."
NOTES = [
    "± of a difference is one standard error, over queries and seeds, paired; queries of the same item count as one.",
    "Features and raw vectors are centred by the mean of the bank before each cosine, all alike.",
]


def score(
    folder: Path, evaluate: Mapping[str, Evaluation], *, seed: int, device: str | torch.device = "cpu",
    team: Team | None = None, made: str = "", out: Path | None = None, steps: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Evaluates the networks of a folder as the sections of a recipe's `evaluate` say; writes and returns the
    scorecard, after each evaluation. One that fails, whatever is wrong with it, does not lose the rows of the others:
    it is named under `failed`. (Of several ranks, where they can all know: not what one alone stumbles over outside of
    its forward passes and trials.)

    A collective of all ranks: each gets the same card, but for the seconds.

    Args:
        folder: of a run, of an export, or of one network.
        team: the ranks, where they have met before.
        made: of what it is, and how, in a sentence.
        out: where the scorecard is written; default the run folder.
        steps: of the run, where they are known: pictures are named by them.
    Raises:
        DataError, OSError: every evaluation failed (the error is that of the first): an export, shard, metadata field
            or class that is needed is not there; or a file cannot be written. Of several ranks, AgreedError on each.
    """
    start, folder, team = time.monotonic(), Path(folder), team or Team()
    team.gather(lambda: export.recover(folder) if team.rank == 0 else None)
    subjects = Exported(below(folder), seed, _unlabelled(evaluate))
    fields = sorted({name for section in evaluate.values() for name in section.metadata()})
    card: dict[str, Any] = {}
    with Scratch(out or folder, team) as scratch:
        bench = Bench(team, scratch, subjects, device, seed, fields, notes=subjects.notes, out=out or folder,
                      step=steps)  # fmt: skip
        for rows, failed in _found(bench, evaluate):
            card = {
                "version": CARD_VERSION, "run": folder.resolve().name, "seed": seed, "device": str(device),
                "seconds": round(time.monotonic() - start, 1),
            } | _told(bench, rows, failed, made)  # fmt: skip
            team.gather(partial(_write, (out or folder) / FILE, card) if team.rank == 0 else _nothing)
    return card


def _nothing() -> None:
    """What other ranks write."""


def _told(bench: Bench, rows: Mapping[str, dict[str, Any]], failed: Mapping[str, str], made: str) -> dict[str, Any]:
    """What the card says of what was found."""
    tasks = told_apart(rows)
    repeated = [REPEATED] if any(task["std"] for task in rows.values()) else []
    return {
        "verdicts": {name: task["passed"] for name, task in tasks.items()},
        "tasks": tasks, "failed": dict(failed), "health": bench.checkup.health,
        "notes": [*([made] if made else []), *NOTES, *repeated, *bench.notes],
    }  # fmt: skip


Found = tuple[dict[str, dict[str, Any]], dict[str, str]]


def _found(bench: Bench, evaluate: Mapping[str, Evaluation]) -> Iterator[Found]:
    """(rows by name, errors by name) after each evaluation, as soon as there is a row; of none, once. A collective.
    Raises the first error where there is no row at the end."""
    rows: dict[str, dict[str, Any]] = {}
    failed: dict[str, Exception] = {}
    waiting = dict.fromkeys(evaluate, WAITING)
    for number, (name, section) in enumerate(evaluate.items(), 1):
        LOG.info("evaluate.%s: %d of %d", name, number, len(evaluate))
        _run(bench, name, section, rows, failed)
        del waiting[name]
        if rows and waiting:
            yield rows, {each: in_a_line(error) for each, error in failed.items()} | waiting
    if failed and not rows:
        raise next(iter(failed.values()))
    yield rows, {each: in_a_line(error) for each, error in failed.items()}


def _run(
    bench: Bench, name: str, section: Evaluation, rows: dict[str, dict[str, Any]], failed: dict[str, Exception]
) -> None:  # fmt: skip
    """Adds the rows of an evaluation, or what is wrong with it, or with one of them. A collective."""
    agreed = Exception if bench.team.world == 1 else AgreedError  # others would leave ranks that wait
    try:
        for row, found in bench.rows("evaluate", {name: section}):
            try:
                rows[row] = _whole(f"evaluate.{row}", found)
            except AgreedError as error:
                failed[row] = error
    except DiskFull:
        raise
    except agreed as error:
        if not isinstance(error, DataError | OSError):
            log.error("evaluate.%s: failed", name, exc_info=error)
        failed[name] = error


def _whole(where: str, found: ScoreRow) -> dict[str, Any]:
    """The row. Raises AgreedError, as all ranks have the same, where a number of it is not finite or cannot be made."""
    try:
        with named(where):
            row = row_of(found)
    except DataError as error:
        raise AgreedError(str(error)) from error
    if odd := next(_not_finite(row), None):
        raise AgreedError(f"{where}: {odd[0]} is {odd[1]} ({found.title}); a number that is not finite says nothing: "
                          "look at the network and at the queries")  # fmt: skip
    return row


def _not_finite(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """(where, what) of numbers inside."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in parts:
        yield from _not_finite(part, f"{path}.{key}" if path else str(key))


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
    learnt = [with_std(task[name], task["std"].get(name), unit) for name in ("random_net", "raw", "trained")]
    learnt[-1] += "" if unit == SHARE else f" {unit}"
    return (task["title"], shown(task["chance"], unit), shown(blind, unit), *learnt, task["verdict"])


def format_table(card: dict[str, Any]) -> str:
    """The scorecard as aligned plain text, one row per task; below it few-label curves, what failed, and the notes."""
    lines = _aligned([HEADINGS, *map(_cells, card["tasks"].values())])
    lines.insert(1, "-" * max(map(len, lines)))
    for task in card["tasks"].values():
        lines += ["", f"few labels: {task['title']}", *_aligned(curve)] if (curve := curve_rows(task)) else []
    lines += [""] if any(task["curve"] for task in card["tasks"].values()) else []
    lines += [f"failed: {name}: {why}" for name, why in card["failed"].items()]
    said = health_said(card["health"]) + collapse_said(card["health"])
    said += [raws for task in card["tasks"].values() if (raws := raws_said(task))]
    return "\n".join([*lines, *said, *card["notes"]])


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Cells as columns of text: the first to the left, as is a verdict; numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = (0, HEADINGS.index("verdict"))
    return ["  ".join(cell.ljust(width) if i in left else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
