"""`bigssl shards pack`: which source is meant, and how its parts become fields."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bigssl.data import sources, sources_series, sources_text
from bigssl.data.errors import DataError
from bigssl.shards_cli_options import add_limits, add_writing, print_written, refuse_destroying, split_option, writing

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
    parser.add_argument("source", type=Path, help="a folder or a file, see --as")
    parser.add_argument("folder", type=Path, help="where the shards go; interrupted, the same command goes on")
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
    parser.add_argument("--pattern", metavar="REGEX", help="files: names -> group `key`, other groups become the json")
    table = parser.add_argument_group("table and jsonl (templates with {column}; a bare word is a column)")
    table.add_argument("--root", type=Path, help="folder of the pictures (default: that of the table)")
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
    from bigssl.data.shards import pack

    if not args.source.exists():
        raise DataError(f"source {args.source}: no such file or folder")
    refuse_destroying(str(args.source), args.folder)
    if args.folder.exists() and args.folder.resolve().is_relative_to(args.source.resolve()):
        raise DataError(f"{args.folder} exists in the source {args.source}, so it would be packed too; move it away")
    options = writing(args)
    indexes = pack(_items(args), args.folder, split=args.split, seed=args.seed, shuffle=not args.keep_order, **options)
    print_written(args.folder, indexes)
    return 0


def _items(args: argparse.Namespace) -> Iterator[sources.Item]:
    kind = args.kind or _kind(args.source)
    _refuse_idle_options(args, kind)
    if kind == "files":
        if not args.source.is_dir():
            raise DataError(f"source {args.source}: --as files needs a folder")
        return sources.from_folder(args.source, args.pattern)
    if kind == "table":
        return sources.from_table(args.source, args.root or args.source.parent, _table(args))
    return _of_each_file(args.source, SUFFIXES[kind], _reader(kind, args))


def _kind(source: Path) -> str:
    if source.is_dir():
        return "files"
    kinds = {".tsv": "table", ".csv": "table"} | {suffix: kind for kind, suffix in SUFFIXES.items() if kind != "series"}
    if source.suffix not in kinds:
        raise DataError(
            f"source {source}: allowed are a folder, {', '.join(sorted(kinds))}; or say what it is with --as"
        )
    return kinds[source.suffix]


_USED = {
    "pattern": ("files",), "root": ("table",), "image": ("table",), "key": ("table", "jsonl"),
    "text": ("table", "jsonl"), "group": ("table", "jsonl"), "meta": ("table", "jsonl"),
    "columns": ("series",), "by": ("series",), "window": ("series",), "stride": ("series",),
}  # fmt: skip


def _refuse_idle_options(args: argparse.Namespace, kind: str) -> None:
    for option, kinds in _USED.items():
        if vars(args)[option] and kind not in kinds:
            raise DataError(f"--{option} has no effect on {args.source}, read as {kind}; it is for {', '.join(kinds)}")


def _table(args: argparse.Namespace) -> sources.Table:
    if not args.image:
        hint = "a table needs --image, e.g. --image 'images/{name}.jpg'; a table of numbers needs --as series"
        raise DataError(f"source {args.source}: {hint}")
    pairs = [image.split("=", 1) if "=" in image else [str(number), image] for number, image in enumerate(args.image)]
    key, text = _template(args.key, "{key}"), _template(args.text, "{caption}")
    return sources.Table(dict(pairs), key, text, _template(args.group, key), _words(args.meta), args.variant)


def _template(text: str | None, default: str) -> str:
    if text is None:
        return default
    return text if "{" in text else f"{{{text}}}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _reader(kind: str, args: argparse.Namespace) -> Callable[[Path, str], Iterator[sources.Item]]:
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
    source: Path, suffix: str, read: Callable[[Path, str], Iterator[sources.Item]]
) -> Iterator[sources.Item]:
    if source.is_file():
        yield from read(source, source.stem)
        return
    for name in sources.files_below(source):
        if name.endswith(suffix):
            yield from read(source / name, name.removesuffix(suffix))
