"""`bigssl shards split|stats|clean`: what a dataset is worth, and datasets made of it."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from bigssl.cli.options import AGAIN, Reading, Writing, local, note, print_written, refuse_destroying, split_of
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.rules import RULES, Thresholds, meaning
from bigssl.data.tools.stats import aligned, statistics, table
from bigssl.data.tools.survey import survey

MEANINGS = "; ".join(f"{name}: {meaning(name, Thresholds())}" for name in RULES)


def split(source: str, folder: str, /, *, part: str = "val=0.1", by: str | None = None, seed: int = 0,
          equal_together: bool = False, writing: Writing | None = None) -> None:  # fmt: skip
    """
    Args:
        source: a dataset: a folder, a tar or a brace pattern; it is only read
        folder: where folder/train and folder/PART go
        part: PART=FRACTION
        by: a field of the json; equal values stay on one side (default: the key; windows of series are parted by time,
            without rows on both sides)
        seed: of the hash
        equal_together: samples of equal content stay on one side; each is read once more
    """
    # imported here and below: webdataset takes seconds to load, and only writing needs it
    from bigssl.data.tools.clean import split

    writing, there = writing or Writing(), local(folder)
    refuse_destroying(source, there)
    with writing.applied(AGAIN):
        index = DatasetIndex.load(source)
        made = split(index, there, split_of(part), seed=seed, by=by, equal=equal_together, **writing.arguments(there))
    print_written(there, made)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Rules:
    """From where on a sample is worthless."""

    blank: float = Thresholds().blank
    """blank: standard deviation of the grey values, of 255"""
    min_text: int = Thresholds().min_text
    """empty-text: letters and digits that are enough"""
    by: str = ""
    """A,B: duplicates agree in these fields (default: in all)"""

    def thresholds(self) -> Thresholds:
        return Thresholds(self.blank, self.min_text, tuple(name for name in self.by.split(",") if name))


def stats(url: str, /, *, json: bool = False, rules: Rules | None = None, reading: Reading | None = None) -> None:
    """
    Args:
        url: a dataset: a folder, a tar or a brace pattern
        json: print JSON instead of tables
    """
    reading = reading or Reading()
    with reading.applied():
        facts = statistics(survey(DatasetIndex.load(url), reading.jobs), (rules or Rules()).thresholds())
    print(jsonlib.dumps(facts, indent=1, ensure_ascii=False) if json else table(facts))
    if broken := facts["rules"]["damaged"]["samples"]:
        note(f"{broken} damaged samples; `bigssl shards verify {facts['url']}` names each")


def clean(source: str, folder: str, /, *, drop: Annotated[str, Parameter(help=f"RULE,RULE: {MEANINGS} (the first of "
          "them stays)")], rules: Rules | None = None, writing: Writing | None = None) -> None:  # fmt: skip
    """
    Args:
        source: a dataset: a folder, a tar or a brace pattern; it is only read
        folder: where the new shards and the report dropped.jsonl go
    """
    from bigssl.data.tools.clean import REPORT, clean

    writing, there = writing or Writing(), local(folder)
    refuse_destroying(source, there)
    names = [name for name in drop.split(",") if name]
    with writing.applied(AGAIN):
        index, thresholds = DatasetIndex.load(source), (rules or Rules()).thresholds()
        cleaned = clean(index, there, names, thresholds, **writing.arguments(there))
    print(aligned([["RULE", "SAMPLES"], *([name, str(cleaned.rules[name])] for name in names)]))
    print(f"{cleaned.dropped} dropped, each named in {there / REPORT}")
    print_written(there, {"": cleaned.dataset})
