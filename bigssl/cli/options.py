"""What several commands of `bigssl shards` share: options, checks of folders, summaries."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigssl.config import limits
from bigssl.data.errors import DataError, display
from bigssl.data.shards import storage
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.shards.urls import meant, place


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Adds --jobs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--jobs", type=int, default=cores, metavar="N", help="processes (default: all cores, %(default)s)"
    )


def add_limits(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """Adds --limit and sets `run`, which is called under the limits that were given."""
    names = ", ".join(f"{name} ({field.default})" for name, field in limits.Limits.model_fields.items())
    help = f"refuse what is larger, or allow it; repeatable; names (and defaults): {names}"
    parser.add_argument("--limit", type=_limit, action="append", default=[], metavar="NAME=VALUE", help=help)

    def limited(args: argparse.Namespace) -> int:
        try:
            with limits.applied(limits.Limits(**dict(args.limit))):
                return run(args)
        except KeyboardInterrupt:
            again = "; the same command goes on from the finished shards" if "shard_size" in args else ""
            note(f"bigssl: interrupted{again}")
            return 130  # what a shell reports of a command that Ctrl-C ended

    parser.set_defaults(run=limited)


def _limit(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    try:
        limits.Limits(**{name: int(value)})
    except ValidationError as error:
        problem = error.errors()[0]["msg"].lower()
        raise argparse.ArgumentTypeError(
            f"{text!r}: {problem}; names are {', '.join(limits.Limits.model_fields)}"
        ) from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE with a whole number") from error
    return name, int(value)


def add_writing(parser: argparse.ArgumentParser) -> None:
    """Adds what every command that writes shards has."""
    parser.add_argument("--name", help="first part of the shards' names (default: the folder's name)")
    parser.add_argument("--shard-size", type=int, default=10_000, metavar="N", help="samples per shard (%(default)s)")
    parser.add_argument(
        "--compress", action="store_true", help="gzip that stays readable by range; halves small samples"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder when the new one is complete")
    add_jobs(parser)


def writing(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `pack` that `add_writing` gave."""
    names = ("shard_size", "compress", "overwrite", "jobs")
    return {"name": args.name or args.folder.resolve().name, "note": note} | {name: vars(args)[name] for name in names}


def path_option(text: str) -> Path:
    """A local path, for argparse, with `~`, `$VAR` and `file:` as in the URLs of a recipe."""
    try:
        url = place(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not storage.is_local(url):
        raise argparse.ArgumentTypeError(f"{display(url)} is no local path, which is needed here")
    return Path(url)


def note(text: str) -> None:
    """Says something that is not the result of the command."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """What no encoding can hold (bytes of a name that are no UTF-8) as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def note_left_out(left_out: LeftOut) -> None:
    """Says what a source holds that became no sample."""
    for line in left_out.lines():
        note(line)


def refuse_destroying(source: str, folder: Path) -> None:
    """Raises DataError when replacing `folder` would remove `source`."""
    for url in meant(source):
        if storage.is_local(url) and storage.local_path(url).resolve().is_relative_to(folder.resolve()):
            raise DataError(f"the source {source} lies in {folder}, which is to be written; write into another folder")


def split_option(text: str) -> tuple[str, float]:
    """PART=FRACTION, for argparse."""
    part, _, fraction = text.partition("=")
    try:
        value = float(fraction)
    except ValueError:
        value = -1.0
    if not part.isidentifier() or part == "train" or not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not PART=FRACTION with 0 < FRACTION < 1, e.g. val=0.1")
    return part, value


def summary(index: DatasetIndex) -> str:
    """One line about a dataset."""
    return f"{len(index)} samples in {len(index.shards)} shards, fields {', '.join(index.fields)}"


def print_written(folder: Path, indexes: dict[str, DatasetIndex]) -> None:
    """A line for each part that was written."""
    for part, index in indexes.items():
        print(f"{folder / part}: {summary(index)}")
