"""`bigssl shards index|verify|inspect` and `bigssl tokenizer train`; the other commands of `shards` lie beside this
file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt

from bigssl.cli.options import Limited, Reading, local, note, note_left_out, printable, summary
from bigssl.data.errors import DataError, display
from bigssl.data.kinds import decode
from bigssl.data.order.stream import read_in_order
from bigssl.data.sample import Sample
from bigssl.data.shards import storage
from bigssl.data.shards.index import DatasetIndex, Member, build_index
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.shards.urls import expand, place
from bigssl.data.tools.verify import Finding
from bigssl.data.tools.verify import verify as findings

FieldOption = Annotated[
    str | None, Parameter(name="--field", help="field that holds the text (default: txt, or a document in json)")
]
SHOWN = 20  # findings in the table that a person reads; standard output has all


def index(url: str, /, *urls: str, out: str | None = None, limits: Limited | None = None) -> None:
    """
    Args:
        url: tars (paths, URLs, brace patterns) or one folder of them
        urls: further ones
        out: folder or URL for the index (default: where the shards are)
    """
    left_out = LeftOut()
    with (limits or Limited()).applied():
        tars = expand([url, *urls], left_out=left_out)
        folder = place(out) if out else storage.parent(tars[0])
        if out is None and any(storage.parent(tar) != folder for tar in tars):
            raise DataError("the shards are not in one folder; say with --out where their index goes")
        index = build_index(tars, folder)
    print(f"{display(folder)}: {summary(index)}")
    left_out.merge(index.left_out)
    note_left_out(left_out)
    if dotted := [name for name in index.fields if "." in name]:
        names = ", ".join(dotted[:SHOWN])
        note(f"by WebDataset's rule a field begins at the first dot of a name; {len(dotted)} fields hold more: {names}")


def verify(url: str, /, *, reading: Reading | None = None) -> int:
    """
    Args:
        url: a folder, a tar or a brace pattern
    """
    shown: list[Finding] = []
    counts: Counter[str] = Counter()
    left_out = LeftOut()
    reading = reading or Reading()
    with reading.applied():
        for finding in findings(url, reading.jobs, left_out):
            counts[finding.shard] += 1
            shown += [finding] if len(shown) < SHOWN else []
            print(printable(json.dumps(asdict(finding), ensure_ascii=False)), flush=True)
    if counts:
        note(_table(shown, counts))
    total = f"{counts.total()} findings in {len(counts)} shards" if counts else "sound"
    note_left_out(left_out)
    note(f"{display(url)}: {total}")
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


def inspect(url: str, /, *, samples: NonNegativeInt = 3) -> None:
    """
    Args:
        url: a folder, a tar or a brace pattern
        samples: how many to show
    """
    index = DatasetIndex.load(url)
    counts = [shard.samples for shard in index.shards]
    size = sum(shard.bytes for shard in index.shards)
    print(f"{display(index.url)}: {summary(index)}")
    print(f"{min(counts)} to {max(counts)} samples per shard, {size:,} bytes, fingerprint {index.fingerprint[:12]}")
    note_left_out(index.left_out)
    for number in range(min(samples, len(index))):
        shard, key, members = index.entry(number)
        print(f"  {key}  ({shard.name})  {_members(members)}")


def _members(members: dict[str, Member]) -> str:
    return ", ".join(f"{name} {member.length} B" for name, member in members.items())


def train(*urls: str, kind: Literal["wordpiece", "bpe", "unigram", "characters"] = "wordpiece",
          vocab_size: PositiveInt = 8192, text_field: FieldOption = None) -> None:  # fmt: skip
    """
    Args:
        urls: datasets (give the training part only), then the tokenizer.json to write
        kind: wordpiece (lower-case, as BERT's), bpe (of bytes, as GPT-2's: nothing is unknown), unigram (as
            SentencePiece's) or characters (each a token)
        vocab_size: entries at most
    """
    # imported here: transformers takes seconds to load
    from bigssl.data.kinds.vocabularies.training import train_tokenizer

    if len(urls) < 2:
        raise DataError("tokenizer train: DATASETS... tokenizer.json are needed, the last one is written")
    out = local(urls[-1])
    indexes = [DatasetIndex.load(url) for url in urls[:-1]]
    samples = (sample for index in indexes for sample in read_in_order(index))
    learnt = train_tokenizer((_text(sample, text_field) for sample in samples), vocab_size, out, kind)
    print(f"{out}: {learnt.sentence}")


def _text(sample: Sample, field: str | None) -> str:
    try:
        return decode.text(decode.field(sample, [field])) if field else decode.running_text(sample)
    except DataError as error:
        again = "`bigssl shards clean --drop damaged` writes the data without such samples"
        raise DataError(f"shard {sample.shard}, sample {sample.key!r}: {error}; {again}") from error
