"""Reads a whole dataset against its index and names every damage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import braceexpand

from bigssl.data import decode, storage, tarwalk
from bigssl.data.errors import DataError, display
from bigssl.data.index import DatasetIndex, Row, ShardInfo, expand, scan
from bigssl.data.jobs import each
from bigssl.data.pipes import PIPE
from bigssl.data.sequential import samples_of
from bigssl.data.stream import SampleReader


@dataclass(frozen=True)
class Finding:
    """One damage: name of the shard (or the index file), key and byte of the tar where they are known, cause."""

    shard: str
    key: str | None
    offset: int | None
    cause: str


def verify(url: str, jobs: int = 1) -> Iterator[Finding]:
    """Every damage of a dataset: an index that does not fit, missing, truncated or changed shards, bad headers,
    missing or flipped bytes, empty shards, repeated keys, fields that cannot be decoded, and what `bigssl.limits`
    refuses. Shards without an index are read too, and the output of `pipe:` commands. jobs: processes, each of which
    reads one shard at a time."""
    if url.startswith(PIPE):
        for found in each(_sequential, list(braceexpand.braceexpand(url)), jobs):
            yield from found
        return
    try:
        index = DatasetIndex.load(url)
    except DataError as error:
        yield Finding(display(url), None, None, str(error))
        yield from _without_index(url, jobs)
        return
    with closing(index):
        for found in each(partial(_shard, index), range(len(index.shards)), jobs):
            yield from found
    yield from _strangers(index)


def _without_index(url: str, jobs: int) -> Iterator[Finding]:
    try:
        tars = expand([url])
    except DataError:
        return
    for found in each(_unindexed, tars, jobs):
        yield from found


def _unindexed(tar: str) -> list[Finding]:
    name = Path(tar).name
    try:
        return [] if scan(tar)[0] else [Finding(name, None, 0, "the shard has no samples")]
    except DataError as error:
        return [_structural(name, error)]


def _sequential(url: str) -> list[Finding]:
    """Of the output of a command, up to the first damage of its structure; a command that fails is one too."""
    found: list[Finding] = []
    samples = 0
    try:
        for key, fields in samples_of(url):
            samples += 1
            found += _undecodable(display(url), key, fields, dict.fromkeys(fields))
    except DataError as error:
        return [*found, _structural(display(url), error)]
    return found if samples else [*found, Finding(display(url), None, 0, "the shard has no samples")]


def _structural(shard: str, error: DataError) -> Finding:
    return Finding(shard, error.key, error.offset, error.cause or str(error))


def _shard(index: DatasetIndex, number: int) -> list[Finding]:
    shard = index.shards[number]
    found: list[Finding] = []
    changed: Finding | None = None
    if not shard.samples:
        found.append(Finding(shard.name, None, 0, "the shard has no samples"))
    try:
        if not storage.exists(shard.url, index.remote):
            return [*found, Finding(shard.name, None, None, "the shard is missing")]
        _, checksum, size = scan(shard.url, index.remote)
        changed = _change(shard, checksum, size)
    except OSError as error:
        return [*found, Finding(shard.name, None, None, f"the shard cannot be read ({error})")]
    except DataError as error:
        found.append(_structural(shard.name, error))
    found += _samples(index, number)
    return found if found or changed is None else [changed]


def _change(shard: ShardInfo, checksum: str, size: int) -> Finding | None:
    """What is wrong with a file whose samples may all be sound."""
    if size < shard.bytes:
        return Finding(shard.name, None, size, f"truncated: the file ends after {size} of {shard.bytes} bytes")
    if size > shard.bytes:
        cause = f"{size - shard.bytes} bytes more than when it was indexed"
        return Finding(shard.name, None, shard.bytes, cause)
    if checksum != shard.checksum:
        return Finding(shard.name, None, None, "the file differs from its checksum: changed after it was indexed")
    return None


def _samples(index: DatasetIndex, number: int) -> Iterator[Finding]:
    first, reader = int(index.offsets[number]), SampleReader(index)
    try:
        for sample in reader.ahead(range(first, first + index.shards[number].samples)):
            yield from _sample(reader, *index.row(sample))
    except DataError as error:  # of the sidecar: what is wrong with a sample is a finding of its own
        yield Finding(index.shards[number].name + ".idx", None, None, str(error))
    finally:
        reader.close()


def _sample(reader: SampleReader, shard: ShardInfo, row: Row) -> Iterator[Finding]:
    there = set(map(_role, row.members))
    missing = sorted({role for name in shard.fields if (role := _role(name)) not in there})
    if missing:
        yield Finding(shard.name, row.key, row.origin, f"no field {', '.join(missing)}, which other samples have")
    try:
        fields = reader.fields(shard, row)
    except DataError as error:
        yield Finding(shard.name, row.key, error.offset, error.cause or str(error))
        return
    yield from _undecodable(shard.name, row.key, fields, {name: m.offset for name, m in row.members.items()})


def _undecodable(
    shard: str, key: str, fields: Mapping[str, bytes], offsets: Mapping[str, int | None]
) -> Iterator[Finding]:
    for name, data in fields.items():
        try:
            decode.check(name, data)
        except DataError as error:
            yield Finding(shard, key, offsets[name], f"field {name!r}: {error}")


def _role(name: str) -> str:
    """What a field is to its sample: pictures in different formats stand for one another, and so does sound."""
    prefix, dot, kind = name.rpartition(".")
    for kinds in (decode.IMAGES, decode.AUDIO):
        if kind in kinds:
            return f"{prefix}{dot}{' or '.join(kinds)}"
    return name


def _strangers(index: DatasetIndex) -> Iterator[Finding]:
    """Shards that lie in a local folder but not in its manifest: a run would never read them."""
    folder = storage.local_path(index.url) if storage.is_local(index.url) else None
    if folder is None or not folder.is_dir():
        return
    known = {shard.name for shard in index.shards}
    for path in sorted(folder.iterdir()):
        if tarwalk.is_shard(path.name) and path.name not in known:
            yield Finding(
                path.name, None, None, "the shard is not in the index; run `bigssl shards index` on the folder"
            )
