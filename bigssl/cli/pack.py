"""`bigssl shards pack`: which source is meant, and how its parts become fields."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bigssl.cli.options import (
    add_limits,
    add_writing,
    note_left_out,
    path_option,
    print_written,
    refuse_destroying,
    split_option,
    writing,
)
from bigssl.data.errors import DataError
from bigssl.data.shards import leftout
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.tools import sources_series, sources_text
from bigssl.data.tools.sources import Item
from bigssl.data.tools.sources_folder import files_below, from_folder
from bigssl.data.tools.sources_tables import Table, from_table

KINDS = """what the source is (default: by its name)
files: a folder; NAME.jpg, NAME.txt, NAME.npy, NAME.flac ... are the fields of sample NAME
table: .csv or .tsv with a header, pictures (--image) and captions
lines: .txt, a document a line
jsonl: a JSON object a line
series: .csv with a row per time; a file is a series, or several by --by, or many windows
ts: .ts of the UEA & UCR archive
For lines, jsonl, series and ts the source may be a folder of such files."""
SUFFIXES = {"lines": ".txt", "jsonl": ".jsonl", "series": ".csv", "ts": ".ts"}


def add_pack(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "pack", help="write shards and their index", formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=path_option, help="a folder or a file, see --as")
    parser.add_argument("folder", type=path_option, help="where the shards go; interrupted, the same command goes on")
    parser.add_argument("--as", dest="kind", choices=["files", "table", *SUFFIXES], help=KINDS)
    parser.add_argument(
        "--split", type=split_option, metavar="PART=FRACTION", help="e.g. val=0.1: folder/val and folder/train"
    )
    parser.add_argument("--seed", type=int, default=0, help="of split and shuffle (%(default)s)")
    parser.add_argument(
        "--keep-order", action="store_true", help="as the source has it (default: shuffled, by a hash of seed and key)"
    )
    add_writing(parser)
    _add_fields(parser)
    add_limits(parser, _pack)


def _add_fields(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pattern", metavar="REGEX", help="files: names without the last extension -> group `key` (dots become _),\n"
        "group `field` (put before the extension); other groups become the json",
    )  # fmt: skip
    table = parser.add_argument_group("table and jsonl (templates with {column}; a bare word is a column)")
    table.add_argument("--root", type=path_option, help="folder of the pictures (default: that of the table)")
    table.add_argument("--image", action="append", default=[], metavar="[VARIANT=]TEMPLATE", help="picture; repeatable")
    table.add_argument(
        "--key", metavar="TEMPLATE", help="key of a sample, {variant} is there too\n"
        "(default: {key}; jsonl: name of the file and a running number)",
    )  # fmt: skip
    table.add_argument("--text", metavar="TEMPLATE", help="text of a sample (default: {caption}; jsonl: {text})")
    table.add_argument("--group", metavar="TEMPLATE", help="equal groups stay together in a split (default: the key)")
    table.add_argument("--meta", default="", metavar="A,B", help="columns for the json")
    table.add_argument("--variant", default="variant", help="name of the variant in the json (%(default)s)")
    series = parser.add_argument_group("series")
    series.add_argument("--columns", default="", metavar="A,B", help="channels, in this order (default: all columns)")
    series.add_argument("--by", metavar="COLUMN", help="adjacent rows of equal value there are one series")
    series.add_argument("--window", type=int, metavar="T", help="cut into series of T rows; shorter ones stay whole")
    series.add_argument(
        "--stride", type=int, metavar="S", help="rows from one window to the next (default: T); the last one\n"
        "begins earlier where it must, so that no row is left out",
    )  # fmt: skip


def _pack(args: argparse.Namespace) -> int:
    # imported here: webdataset takes seconds to load, and only writing needs it
    from bigssl.data.tools.pack import pack

    if not args.source.exists():
        raise DataError(f"source {args.source}: no such file or folder")
    refuse_destroying(str(args.source), args.folder)
    if args.folder.exists() and args.folder.resolve().is_relative_to(args.source.resolve()):
        raise DataError(f"{args.folder} exists in the source {args.source}, so it would be packed too; move it away")
    left_out = LeftOut()
    items = _listed(args, left_out)
    options = writing(args)
    indexes = pack(items, args.folder, split=args.split, seed=args.seed, shuffle=not args.keep_order, **options)
    print_written(args.folder, indexes)
    note_left_out(left_out)
    return 0


def _listed(args: argparse.Namespace, left_out: LeftOut) -> list[Item]:
    try:
        items = list(_items(args, left_out))
    except OSError as error:
        raise DataError(f"source {error.filename or args.source} cannot be read ({error.strerror})") from error
    if not items:
        raise DataError("; ".join(["nothing to pack: the source has no samples", *left_out.lines()]))
    return items


def _items(args: argparse.Namespace, left_out: LeftOut) -> Iterator[Item]:
    kind = args.kind or _kind(args.source)
    _refuse_idle_options(args, kind)
    if kind == "files":
        if not args.source.is_dir():
            raise DataError(f"source {args.source}: --as files needs a folder")
        return from_folder(args.source, args.pattern, left_out)
    if kind == "table":
        return from_table(args.source, args.root or args.source.parent, _table(args), left_out)
    return _of_each_file(args.source, SUFFIXES[kind], _reader(kind, args), left_out)


def _kind(source: Path) -> str:
    if source.is_dir():
        return "files"
    kinds = {".tsv": "table", ".csv": "table"} | {suffix: kind for kind, suffix in SUFFIXES.items() if kind != "series"}
    suffix = source.suffix.lower()
    if suffix not in kinds:
        raise DataError(
            f"source {source}: allowed are a folder, {', '.join(sorted(kinds))}; or say what it is with --as"
        )
    return kinds[suffix]


_USED = {
    "pattern": ("files",), "root": ("table",), "image": ("table",), "key": ("table", "jsonl"),
    "text": ("table", "jsonl"), "group": ("table", "jsonl"), "meta": ("table", "jsonl"),
    "columns": ("series",), "by": ("series",), "window": ("series",), "stride": ("series",),
}  # fmt: skip


def _refuse_idle_options(args: argparse.Namespace, kind: str) -> None:
    for option, kinds in _USED.items():
        if vars(args)[option] and kind not in kinds:
            raise DataError(f"--{option} has no effect on {args.source}, read as {kind}; it is for {', '.join(kinds)}")


def _table(args: argparse.Namespace) -> Table:
    if not args.image:
        hint = "a table needs --image, e.g. --image 'images/{name}.jpg'; a table of numbers needs --as series"
        raise DataError(f"source {args.source}: {hint}")
    pairs = [image.split("=", 1) if "=" in image else [str(number), image] for number, image in enumerate(args.image)]
    pairs = [[variant, _template(image, "")] for variant, image in pairs]
    key, text = _template(args.key, "{key}"), _template(args.text, "{caption}")
    double = [variant for variant, times in Counter(variant for variant, _ in pairs).items() if times > 1]
    if double:
        raise DataError(f"--image: the variant {double[0]!r} is given twice; name each, as in --image big=TEMPLATE")
    return Table(dict(pairs), key, text, _template(args.group, key), _words(args.meta), args.variant)


def _template(text: str | None, default: str) -> str:
    if text is None:
        return default
    return text if "{" in text else f"{{{text}}}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _reader(kind: str, args: argparse.Namespace) -> Callable[[Path, str], Iterator[Item]]:
    if kind == "lines":
        return sources_text.from_lines
    if kind == "ts":
        return sources_series.from_series
    if kind == "series":
        how = sources_series.Windows(_words(args.columns), args.by, args.window, args.stride)
        return lambda path, stem: sources_series.from_csv(path, stem, how)
    key, group = (text and _template(text, "") for text in (args.key, args.group))
    text, meta = _template(args.text, "{text}"), _words(args.meta)
    return lambda path, stem: sources_text.from_jsonl(path, stem, text=text, key=key, group=group, meta=meta)


def _of_each_file(
    source: Path, suffix: str, read: Callable[[Path, str], Iterator[Item]], left_out: LeftOut
) -> Iterator[Item]:
    names = files_below(source, left_out) if source.is_dir() else [source.name]
    folder = source if source.is_dir() else source.parent
    for name in names:
        if source.is_dir() and not name.lower().endswith(suffix):
            left_out.add(leftout.OTHERS, name)
            continue
        item = None
        for item in read(folder / name, name[: -len(suffix)] if name.lower().endswith(suffix) else Path(name).stem):
            yield item
        if item is None:
            left_out.add(leftout.BLANK, name)
