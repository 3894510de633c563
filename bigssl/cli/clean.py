"""`bigssl shards split|stats|clean`: what a dataset is worth, and datasets made of it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bigssl.cli.options import (
    add_jobs,
    add_limits,
    add_writing,
    note,
    path_option,
    print_written,
    refuse_destroying,
    split_option,
    writing,
)
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.rules import RULES, Thresholds, meaning
from bigssl.data.tools.stats import aligned, statistics, table
from bigssl.data.tools.survey import survey


def add_split(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "split", help="part existing shards into train and val by a hash of the key; samples keep their order"
    )
    parser.add_argument("source", help="a dataset: a folder, a tar or a brace pattern; it is only read")
    parser.add_argument("folder", type=path_option, help="where folder/train and folder/PART go")
    parser.add_argument(
        "--part", type=split_option, default=("val", 0.1), metavar="PART=FRACTION", help="default: val=0.1"
    )
    parser.add_argument("--by", metavar="FIELD", help="a field of the json; equal values stay on one side")
    parser.add_argument("--seed", type=int, default=0, help="of the hash (%(default)s)")
    add_writing(parser)
    add_limits(parser, _split)


def _split(args: argparse.Namespace) -> int:
    # imported here and below: webdataset takes seconds to load, and only writing needs it
    from bigssl.data.tools.clean import split

    refuse_destroying(args.source, args.folder)
    index = DatasetIndex.load(args.source)
    print_written(args.folder, split(index, args.folder, args.part, seed=args.seed, by=args.by, **writing(args)))
    return 0


def _add_thresholds(parser: argparse.ArgumentParser) -> None:
    defaults = Thresholds()
    parser.add_argument(
        "--blank", type=float, default=defaults.blank, metavar="SPREAD",
        help="blank: standard deviation of the grey values, of 255 (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--min-text", type=int, default=defaults.min_text, metavar="N",
        help="empty-text: letters and digits that are enough (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--by", default="", metavar="A,B", help="duplicates: agree in these fields (default: in all)")


def _thresholds(args: argparse.Namespace) -> Thresholds:
    return Thresholds(args.blank, args.min_text, tuple(name for name in args.by.split(",") if name))


def add_stats(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("stats", help="sizes, lengths, duplicates, and what `clean` would drop")
    parser.add_argument("url", help="a dataset: a folder, a tar or a brace pattern")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    _add_thresholds(parser)
    add_jobs(parser)
    add_limits(parser, _stats)


def _stats(args: argparse.Namespace) -> int:
    facts = statistics(survey(DatasetIndex.load(args.url), args.jobs), _thresholds(args))
    print(json.dumps(facts, indent=1, ensure_ascii=False) if args.json else table(facts))
    if broken := facts["rules"]["damaged"]["samples"]:
        note(f"{broken} damaged samples; `bigssl shards verify {facts['url']}` names each")
    return 0


def add_clean(commands: Any) -> None:
    """Adds the command."""
    rules = "; ".join(f"{name}: {meaning(name, Thresholds())}" for name in RULES)
    parser = commands.add_parser(
        "clean", help="write a dataset anew without what is worthless, by rule; samples keep their order"
    )
    parser.add_argument("source", help="a dataset: a folder, a tar or a brace pattern; it is only read")
    parser.add_argument("folder", type=path_option, help="where the new shards and the report dropped.jsonl go")
    parser.add_argument("--drop", required=True, metavar="RULE,RULE", help=f"{rules} (the first of them stays)")
    _add_thresholds(parser)
    add_writing(parser)
    add_limits(parser, _clean)


def _clean(args: argparse.Namespace) -> int:
    from bigssl.data.tools.clean import REPORT, clean

    refuse_destroying(args.source, args.folder)
    names = [name for name in args.drop.split(",") if name]
    cleaned = clean(DatasetIndex.load(args.source), args.folder, names, _thresholds(args), **writing(args))
    print(aligned([["RULE", "SAMPLES"], *([name, str(cleaned.rules[name])] for name in names)]))
    print(f"{cleaned.dropped} dropped, each named in {args.folder / REPORT}")
    print_written(args.folder, {"": cleaned.dataset})
    return 0
