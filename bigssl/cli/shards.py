"""`bigssl shards index|verify|inspect` and `bigssl tokenizer train`; the other commands of `shards` lie beside this
file."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from bigssl.cli.clean import add_clean, add_split, add_stats
from bigssl.cli.options import add_jobs, add_limits, note, note_left_out, path_option, printable, summary
from bigssl.cli.pack import add_pack
from bigssl.cli.replay import add_replay
from bigssl.data.errors import DataError, display
from bigssl.data.kinds import decode
from bigssl.data.order.stream import read_in_order
from bigssl.data.sample import Sample
from bigssl.data.shards import storage
from bigssl.data.shards.index import DatasetIndex, Member, build_index
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.shards.urls import expand, place
from bigssl.data.tools.verify import Finding, verify

SHOWN = 20  # findings in the table that a person reads; standard output has all


def add_commands(subparsers: Any) -> None:
    """Adds `shards` and `tokenizer` to the subparsers of `bigssl`; each sets `run`, a function of the parsed arguments
    that returns the exit status and raises DataError."""
    shards = subparsers.add_parser("shards", help="pack, index, check and look into WebDataset shards")
    commands = shards.add_subparsers(required=True, metavar="COMMAND")
    add_pack(commands)
    add_split(commands)
    add_clean(commands)
    add_stats(commands)
    _add_index(commands)
    _add_verify(commands)
    _add_inspect(commands)
    add_replay(commands)
    tokenizer = subparsers.add_parser("tokenizer", help="train a tokenizer on shards")
    _add_train(tokenizer.add_subparsers(required=True, metavar="COMMAND"))


def _add_index(commands: Any) -> None:
    parser = commands.add_parser("index", help="build the index of existing shards")
    parser.add_argument("urls", nargs="+", help="tars (paths, URLs, brace patterns) or one folder of them")
    parser.add_argument("--out", help="folder or URL for the index (default: where the shards are)")
    add_limits(parser, _index)


def _index(args: argparse.Namespace) -> int:
    left_out = LeftOut()
    tars = expand(args.urls, left_out=left_out)
    folder = place(args.out) if args.out else storage.parent(tars[0])
    if args.out is None and any(storage.parent(tar) != folder for tar in tars):
        raise DataError("the shards are not in one folder; say with --out where their index goes")
    index = build_index(tars, folder)
    print(f"{display(folder)}: {summary(index)}")
    left_out.merge(index.left_out)
    note_left_out(left_out)
    if dotted := [name for name in index.fields if "." in name]:
        names = ", ".join(dotted[:SHOWN])
        note(f"by WebDataset's rule a field begins at the first dot of a name; {len(dotted)} fields hold more: {names}")
    return 0


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify", help="read everything; one JSON line per damage, exit status 1 if there is any"
    )
    parser.add_argument("url", help="a folder, a tar or a brace pattern")
    add_jobs(parser)
    add_limits(parser, _verify)


def _verify(args: argparse.Namespace) -> int:
    shown: list[Finding] = []
    counts: Counter[str] = Counter()
    left_out = LeftOut()
    for finding in verify(args.url, args.jobs, left_out):
        counts[finding.shard] += 1
        shown += [finding] if len(shown) < SHOWN else []
        print(printable(json.dumps(asdict(finding), ensure_ascii=False)), flush=True)
    if counts:
        note(_table(shown, counts))
    total = f"{counts.total()} findings in {len(counts)} shards" if counts else "sound"
    note_left_out(left_out)
    note(f"{display(args.url)}: {total}")
    return 1 if counts else 0


def _table(shown: list[Finding], counts: Counter[str]) -> str:
    rows = [("SHARD", "KEY", "BYTE", "CAUSE")]
    rows += [
        (f.shard, (f.key or "").replace("\n", "\\n"), "" if f.offset is None else str(f.offset), f.cause) for f in shown
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    if counts.total() > len(shown):
        lines += [f"... and {counts.total() - len(shown)} more", "", "FINDINGS  SHARD"]
        lines += [f"{count:8d}  {shard}" for shard, count in counts.most_common(SHOWN)]
    return "\n".join(lines)


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="what a dataset holds: counts, sizes, the first samples")
    parser.add_argument("url", help="a folder, a tar or a brace pattern")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="samples to show (%(default)s)")
    parser.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    index = DatasetIndex.load(args.url)
    counts = [shard.samples for shard in index.shards]
    size = sum(shard.bytes for shard in index.shards)
    print(f"{display(index.url)}: {summary(index)}")
    print(f"{min(counts)} to {max(counts)} samples per shard, {size:,} bytes, fingerprint {index.fingerprint[:12]}")
    note_left_out(index.left_out)
    for number in range(min(args.samples, len(index))):
        shard, key, members = index.entry(number)
        print(f"  {key}  ({shard.name})  {_members(members)}")
    return 0


def _members(members: dict[str, Member]) -> str:
    return ", ".join(f"{name} {member.length} B" for name, member in members.items())


def _add_train(commands: Any) -> None:
    parser = commands.add_parser("train", help="train a lower-case WordPiece vocabulary on the text of datasets")
    parser.add_argument("urls", nargs="+", help="datasets (give the training part only)")
    parser.add_argument("out", type=path_option, help="the tokenizer.json to write")
    parser.add_argument("--vocab-size", type=int, default=8192, metavar="N", help="at most (%(default)s)")
    parser.add_argument("--field", help="field that holds the text (default: txt, or a document in json)")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    # imported here: transformers takes seconds to load
    from bigssl.data.kinds.text import load_tokenizer, train_tokenizer

    indexes = [DatasetIndex.load(url) for url in args.urls]
    samples = (sample for index in indexes for sample in read_in_order(index))
    train_tokenizer((_text(sample, args.field) for sample in samples), args.vocab_size, args.out)
    print(f"{args.out}: {len(load_tokenizer(args.out))} entries")
    return 0


def _text(sample: Sample, field: str | None) -> str:
    try:
        return decode.text(decode.field(sample, [field])) if field else decode.running_text(sample)
    except DataError as error:
        again = "`bigssl shards clean --drop damaged` writes the data without such samples"
        raise DataError(f"shard {sample.shard}, sample {sample.key!r}: {error}; {again}") from error
