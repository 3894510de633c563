"""`bigssl shards split|stats|clean`: what a dataset is worth, and datasets made of it."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass, field
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt

from bigssl.cli.options import AGAIN, Reading, Writing, local, note, print_written, refuse_destroying, split_of
from bigssl.data.errors import DataError
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.rules import RULES, Thresholds, check_thresholds, meaning
from bigssl.data.tools.stats import aligned, statistics, table
from bigssl.data.tools.survey import survey
from bigssl.data.tools.texts.near import can_find_near
from bigssl.data.tools.texts.rewriting import REWRITES, check_rewrites

MEANINGS = "; ".join(f"{name}: {meaning(name, Thresholds())}" for name in RULES)
AT = "defaults: " + ", ".join(f"{name}={rule.default:g}" for name, rule in RULES.items() if rule.default is not None)
REWRITING = "; ".join(f"{name}: {rule.meaning}" for name, rule in REWRITES.items())


def split(source: str, folder: str, /, *, part: str = "val=0.1", by: str | None = None, seed: int = 0,
          equal_together: bool = False, cut: bool = False, margin: NonNegativeInt = 0,
          writing: Writing | None = None) -> None:  # fmt: skip
    """
    Args:
        source: a dataset: a folder, a tar or a brace pattern; it is only read
        folder: where folder/train and folder/PART go
        part: PART=FRACTION
        by: a field of the json; equal values stay on one side (default: the key; windows of series are parted by time,
            without rows on both sides)
        seed: of the hash
        equal_together: samples of equal content stay on one side; each is read once more
        cut: each series (npy) is cut in two, its last FRACTION is in PART
        margin: with --cut: rows between, which are in neither
    """
    if (cut and (by is not None or equal_together)) or (margin and not cut):
        raise DataError("split: --margin needs --cut, which takes neither --by nor --equal-together")
    # imported here and below: webdataset takes seconds to load, and only writing needs it
    from bigssl.data.tools.clean import split

    writing, there = writing or Writing(), local(folder)
    refuse_destroying(source, there)
    with writing.applied(AGAIN):
        index = DatasetIndex.load(source)
        made = split(index, there, split_of(part), seed=seed, by=by, equal=equal_together, cut=cut,
                     margin=margin, **writing.arguments(there))
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
    at: Annotated[list[str], Parameter(help=f"RULE=VALUE: another threshold of a rule of texts; repeatable; {AT}")
    ] = field(default_factory=list)  # fmt: skip
    script: str = ""
    """script: A,B: in which texts are to be written: latin, han, cyrillic, ..."""
    rewrite: Annotated[str, Parameter(help=f"RULE,RULE: before texts are judged: {REWRITING}")] = ""

    def thresholds(self) -> Thresholds:
        at = dict(map(_threshold, self.at))
        return Thresholds(self.blank, self.min_text, _names(self.by), at, _names(self.script.lower()))

    @property
    def rewrites(self) -> tuple[str, ...]:
        return _names(self.rewrite)


def _threshold(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise DataError(f"--at {text}: is not RULE=VALUE with a number") from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def stats(url: str, /, *, json: bool = False, rules: Rules | None = None, reading: Reading | None = None) -> None:
    """
    Args:
        url: a dataset: a folder, a tar or a brace pattern
        json: print JSON instead of tables
    """
    reading, rules = reading or Reading(), rules or Rules()
    thresholds = rules.thresholds()
    check_thresholds(thresholds)
    check_rewrites(rules.rewrites)
    with reading.applied():
        found = survey(DatasetIndex.load(url), reading.jobs, rewrite=rules.rewrites, near=can_find_near())
        facts = statistics(found, thresholds)
    print(jsonlib.dumps(facts, indent=1, ensure_ascii=False) if json else table(facts))
    if broken := facts["rules"]["damaged"]["samples"]:
        note(f"{broken} damaged samples; `bigssl shards verify {facts['url']}` names each")


def clean(source: str, folder: str, /, *, drop: Annotated[str, Parameter(help=f"RULE,RULE: {MEANINGS} (the first of "
          "them stays)")] = "", rules: Rules | None = None, writing: Writing | None = None) -> None:  # fmt: skip
    """
    Args:
        source: a dataset: a folder, a tar or a brace pattern; it is only read
        folder: where the new shards and the report dropped.jsonl go
    """
    from bigssl.data.tools.clean import REPORT, clean

    writing, rules, there = writing or Writing(), rules or Rules(), local(folder)
    refuse_destroying(source, there)
    names = _names(drop)
    with writing.applied(AGAIN):
        index, thresholds = DatasetIndex.load(source), rules.thresholds()
        cleaned = clean(index, there, names, thresholds, rewrite=rules.rewrites, **writing.arguments(there))
    if names:
        print(aligned([["RULE", "SAMPLES"], *([name, str(cleaned.rules[name])] for name in names)]))
    if cleaned.rewrites:
        print(aligned([["REWRITES", "SAMPLES"], *([name, str(count)] for name, count in cleaned.rewrites.items())]))
    print(f"{cleaned.dropped} dropped, each named in {there / REPORT}")
    print_written(there, {"": cleaned.dataset})
