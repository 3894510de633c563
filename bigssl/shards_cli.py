"""`bigssl shards pack|index|verify|inspect` and `bigssl tokenizer train`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bigssl.data import decode, sources, storage
from bigssl.data.errors import DataError, display
from bigssl.data.index import DatasetIndex, Member, build_index, expand
from bigssl.data.stream import in_order
from bigssl.data.verify import verify


def add_commands(subparsers: Any) -> None:
    """Adds `shards` and `tokenizer` to the subparsers of `bigssl`; each sets `run`, a function of the parsed arguments
    that returns the exit status and raises DataError."""
    shards = subparsers.add_parser("shards", help="pack, index, check and look into WebDataset shards")
    commands = shards.add_subparsers(required=True, metavar="COMMAND")
    _add_pack(commands)
    _add_index(commands)
    _add_verify(commands)
    _add_inspect(commands)
    tokenizer = subparsers.add_parser("tokenizer", help="train a tokenizer on shards")
    _add_train(tokenizer.add_subparsers(required=True, metavar="COMMAND"))


def _add_pack(commands: Any) -> None:
    parser = commands.add_parser("pack", help="write shards and their index")
    parser.add_argument(
        "source", type=Path, help="a folder of files, a .tsv/.csv table of pictures and captions, a .ts file"
    )
    parser.add_argument("folder", type=Path, help="where the shards go")
    parser.add_argument("--name", help="first part of the shards' names (default: the folder's name)")
    parser.add_argument("--shard-size", type=int, default=10_000, metavar="N", help="samples per shard (%(default)s)")
    parser.add_argument(
        "--split", type=_split, metavar="PART=FRACTION", help="e.g. val=0.1: folder/val and folder/train"
    )
    parser.add_argument("--seed", type=int, default=0, help="of split and shuffle (%(default)s)")
    parser.add_argument("--shuffle", action="store_true", help="order by a hash of the key, not as the source has it")
    parser.add_argument(
        "--compress", action="store_true", help="gzip that stays readable by range; halves small samples"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder when the new one is complete")
    parser.add_argument(
        "--pattern", metavar="REGEX", help="folders: names -> group `key`, other groups become the json"
    )
    table = parser.add_argument_group("tables (templates with {column})")
    table.add_argument("--root", type=Path, help="folder of the pictures (default: that of the table)")
    table.add_argument("--image", action="append", default=[], metavar="[VARIANT=]TEMPLATE", help="picture; repeatable")
    table.add_argument("--key", default="{key}", help="key of a sample; {variant} is there too (%(default)s)")
    table.add_argument("--text", default="{caption}", help="text of a sample (%(default)s)")
    table.add_argument("--group", help="samples of equal group stay together in a split (default: the key)")
    table.add_argument("--meta", default="", help="columns for the json, with commas between")
    table.add_argument("--variant", default="variant", help="name of the variant in the json (%(default)s)")
    parser.set_defaults(run=_pack)


def _split(text: str) -> tuple[str, float]:
    part, _, fraction = text.partition("=")
    try:
        value = float(fraction)
    except ValueError:
        value = -1.0
    if not part.isidentifier() or part == "train" or not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not PART=FRACTION with 0 < FRACTION < 1, e.g. val=0.1")
    return part, value


def _pack(args: argparse.Namespace) -> int:
    # imported here: webdataset takes seconds to load, and only packing needs it
    from bigssl.data.shards import pack

    indexes = pack(
        _items(args),
        args.folder,
        name=args.name or args.folder.name,
        shard_size=args.shard_size,
        split=args.split,
        seed=args.seed,
        shuffle=args.shuffle,
        compress=args.compress,
        overwrite=args.overwrite,
    )
    for part, index in indexes.items():
        print(f"{args.folder / part}: {_summary(index)}")
    return 0


def _items(args: argparse.Namespace) -> Iterator[sources.Item]:
    if args.source.is_dir():
        return sources.from_folder(args.source, args.pattern)
    if not args.source.is_file():
        raise DataError(f"source {args.source}: no such file or folder")
    if args.source.suffix == ".ts":
        return sources.from_series(args.source)
    if args.source.suffix in (".tsv", ".csv"):
        return sources.from_table(args.source, args.root or args.source.parent, _table(args))
    raise DataError(f"source {args.source}: allowed are a folder, .tsv, .csv or .ts")


def _table(args: argparse.Namespace) -> sources.Table:
    if not args.image:
        raise DataError(f"source {args.source}: a table needs --image, e.g. --image 'images/{{name}}.jpg'")
    pairs = [image.split("=", 1) if "=" in image else [str(number), image] for number, image in enumerate(args.image)]
    meta = [column for column in args.meta.split(",") if column]
    return sources.Table(dict(pairs), args.key, args.text, args.group or args.key, meta, args.variant)


def _summary(index: DatasetIndex) -> str:
    return f"{len(index)} samples in {len(index.shards)} shards, fields {', '.join(index.fields)}"


def _add_index(commands: Any) -> None:
    parser = commands.add_parser("index", help="build the index of existing shards")
    parser.add_argument("urls", nargs="+", help="tars (paths, URLs, brace patterns) or one folder of them")
    parser.add_argument("--out", help="folder or URL for the index (default: where the shards are)")
    parser.set_defaults(run=_index)


def _index(args: argparse.Namespace) -> int:
    tars = expand(args.urls)
    folder = args.out or storage.parent(tars[0])
    if args.out is None and any(storage.parent(tar) != folder for tar in tars):
        raise DataError("the shards are not in one folder; say with --out where their index goes")
    index = build_index(tars, folder)
    print(f"{display(folder)}: {_summary(index)}")
    return 0


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify", help="read everything; one JSON line per damage, exit status 1 if there is any"
    )
    parser.add_argument("url", help="a folder, a tar or a brace pattern")
    parser.set_defaults(run=_verify)


def _verify(args: argparse.Namespace) -> int:
    findings = 0
    for finding in verify(args.url):
        findings += 1
        print(json.dumps(asdict(finding), ensure_ascii=False), flush=True)
    print(f"{display(args.url)}: {findings} findings" if findings else f"{display(args.url)}: sound", file=sys.stderr)
    return 1 if findings else 0


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="what a dataset holds: counts, sizes, the first samples")
    parser.add_argument("url", help="a folder, a tar or a brace pattern")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="samples to show (%(default)s)")
    parser.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    index = DatasetIndex.load(args.url)
    counts = [shard.samples for shard in index.shards]
    size = sum(shard.bytes for shard in index.shards)
    print(f"{display(index.url)}: {_summary(index)}")
    print(f"{min(counts)} to {max(counts)} samples per shard, {size:,} bytes, fingerprint {index.fingerprint[:12]}")
    for number in range(min(args.samples, len(index))):
        shard, key, members = index.entry(number)
        print(f"  {key}  ({shard.name})  {_members(members)}")
    return 0


def _members(members: dict[str, Member]) -> str:
    return ", ".join(f"{name} {member.length} B" for name, member in members.items())


def _add_train(commands: Any) -> None:
    parser = commands.add_parser("train", help="train a lower-case WordPiece vocabulary on the text of datasets")
    parser.add_argument("urls", nargs="+", help="datasets (give the training part only)")
    parser.add_argument("out", help="the tokenizer.json to write")
    parser.add_argument("--vocab-size", type=int, default=8192, metavar="N", help="at most (%(default)s)")
    parser.add_argument("--field", default="txt", help="field that holds the text (%(default)s)")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    # imported here: transformers takes seconds to load
    from bigssl.data.text import load_tokenizer, train_tokenizer

    indexes = [DatasetIndex.load(url) for url in args.urls]
    texts = (decode.text(decode.field(sample, [args.field])) for index in indexes for sample in in_order(index))
    train_tokenizer(texts, args.vocab_size, args.out)
    print(f"{args.out}: {len(load_tokenizer(args.out))} entries")
    return 0
