"""Datasets made of others: without what is worthless, or parted by key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bigssl.data.errors import DataError, damaged
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.pack import pack, refuse_existing
from bigssl.data.tools.parts import equal_together
from bigssl.data.tools.rules import (
    Judged,
    Thresholds,
    check_names,
    check_thresholds,
    judge_samples,
    refuse_unasked,
)
from bigssl.data.tools.sources.base import Item, json_bytes
from bigssl.data.tools.sources.halves import cut_in_two
from bigssl.data.tools.sources.shards import from_index, stretches_of
from bigssl.data.tools.survey import Survey, survey
from bigssl.data.tools.texts.rewriting import check_rewrites, rewritten, version_of

REPORT = "dropped.jsonl"


class Cleaned(NamedTuple):
    """The new dataset, how many samples it lacks, how many fell under each rule (one may fall under several), and how
    many of those that are left each rewriting changed."""

    dataset: DatasetIndex
    dropped: int
    rules: Counter[str]
    rewrites: dict[str, int]


def clean(
    index: DatasetIndex,
    folder: Path,
    drop: Sequence[str],
    thresholds: Thresholds,
    *,
    rewrite: Sequence[str] = (),
    jobs: int = 1,
    overwrite: bool = False,
    **options: Any,
) -> Cleaned:
    """Writes the samples of `index` that fall under none of the rules `drop` (see `rules.RULES`) into `folder`, their
    texts rewritten by the rules `rewrite` (see `texts.rewriting.REWRITES`) before they are judged.

    The report `folder/dropped.jsonl` says for every other one and each of its rules {"key", "shard", "rule", "field",
    "value"}. options: as of `pack`. Raises DataError for unknown rules, when nothing is left, and at damaged samples
    unless "damaged" is a rule.
    """
    check_asked(drop, rewrite, thresholds)
    refuse_existing(folder, overwrite)  # before the samples are read, which may take hours
    facts = survey(index, jobs, rewrite=rewrite, near="near-duplicates" in drop)
    if facts.damage and "damaged" not in drop:
        raise _unexpected_damage(facts)
    verdicts = judge_samples(facts, drop, thresholds) if drop else []
    dropped = {verdict.hit.number for verdict in verdicts}
    if len(dropped) == len(index):
        raise DataError(f"{folder}: all {len(index)} samples fall under {', '.join(drop)}; nothing would be left")
    kept = from_index(index, (number for number in range(len(index)) if number not in dropped))
    report = b"".join(_line(index, verdict) for verdict in verdicts)
    kept = _as_rewritten(kept, rewrite) if rewrite else kept
    written = pack(kept, folder, jobs=jobs, overwrite=overwrite, beside={REPORT: report}, **options)[""]
    changed = {name: len(set(facts.changing.get(name, [])) - dropped) for name in rewrite}
    return Cleaned(written, len(dropped), Counter(verdict.rule for verdict in verdicts), changed)


def check_asked(drop: Sequence[str], rewrite: Sequence[str], thresholds: Thresholds) -> None:
    """Raises DataError for rules of which some cannot be followed, and where there are none."""
    if drop or not rewrite:
        check_names(drop)
    check_rewrites(rewrite)
    check_thresholds(thresholds)
    refuse_unasked(drop, thresholds)
    idle = [f"--at {name}" for name in thresholds.at if name not in drop]
    if thresholds.scripts and "script" not in drop:
        idle.append("--script")
    if idle:
        raise DataError(f"{idle[0]} has no effect: --drop has no {idle[0].removeprefix('--at ').removeprefix('--')}")


def _as_rewritten(items: Iterable[Item], names: Sequence[str]) -> Iterator[Item]:
    """The items with their texts rewritten. Shards of an interrupted run are kept only where it had the same rules."""
    for item in items:
        yield replace(item, load=partial(_load_rewritten, item, names), stamp=partial(_stamped, item, names))


def _load_rewritten(item: Item, names: Sequence[str]) -> dict[str, bytes]:
    try:
        return rewritten(item.load(), names)
    except DataError as error:
        raise DataError(f"sample {item.key!r}: {error}") from error


def _stamped(item: Item, names: Sequence[str]) -> object:
    return [item.stamp and item.stamp(), version_of(names)]


def _unexpected_damage(facts: Survey) -> DataError:
    number, cause = min(facts.damage.items())
    shard, row = facts.index.row(number)
    why = f"{cause} ({len(facts.damage)} damaged samples in all; the rule `damaged` drops them)"
    return damaged(shard.url, key=row.key, offset=row.origin, cause=why, dataset=facts.index.url)


def _line(index: DatasetIndex, verdict: Judged) -> bytes:
    shard, row = index.row(verdict.hit.number)
    facts = {"rule": verdict.rule, "field": verdict.hit.field, "value": verdict.hit.value}
    return json_bytes({"key": row.key, "shard": shard.name, **facts}) + b"\n"


def split(
    index: DatasetIndex, folder: Path, part: tuple[str, float], *, seed: int = 0, by: str | None = None,
    equal: bool = False, cut: bool = False, margin: int = 0, **options: Any,
) -> dict[str, DatasetIndex]:  # fmt: skip
    """Writes `folder/PART` of a share of the samples and `folder/train` of the others; part: (name, share).

    A hash of (seed, key) decides, or of a field `by` of the json, so that samples that agree there stay on one side.
    Windows of series are parted by time instead, unless there is a field `by` (see `by_time`). equal: samples of
    equal content stay on one side, too. cut: each series is cut in two by time, `margin` rows between (see
    `cut_in_two`). options: as of `pack`. Raises DataError.
    """
    if cut:
        return pack(cut_in_two(index, part[1], margin), folder, split=part, seed=seed, **options)
    items = stretches_of(index) if by is None else None
    items = from_index(index, range(len(index)), by) if items is None else items
    items = equal_together(items) if equal else items
    return pack(items, folder, split=part, seed=seed, **options)
