"""Reads a whole dataset against its index and names every damage."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import numpy as np

from bigssl.data.errors import DataError, display
from bigssl.data.kinds import decode
from bigssl.data.order.sequential import samples_of
from bigssl.data.order.stream import SampleReader
from bigssl.data.remote.pipes import PIPE
from bigssl.data.shards import leftout, storage, tarwalk, unpack
from bigssl.data.shards.index import DatasetIndex, Row, ShardInfo, scan
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.shards.urls import expand, meant
from bigssl.data.tools.jobs import each


@dataclass(frozen=True)
class Finding:
    """One damage: name of the shard (or the index file), key and byte of the tar where they are known, cause."""

    shard: str
    key: str | None
    offset: int | None
    cause: str


def verify(url: str, jobs: int = 1, left_out: LeftOut | None = None) -> Iterator[Finding]:
    """Every damage of a dataset: an index that does not fit, missing, truncated or changed shards, bad headers,
    missing or flipped bytes, empty shards, repeated keys (also over shards), fields that cannot be decoded, and what
    `bigssl.config.limits` refuses. Shards without an index are read too, and the output of `pipe:` commands. jobs:
    processes, each of which reads one shard at a time. left_out: is told what belongs to no sample, which is no
    damage."""
    left_out = LeftOut() if left_out is None else left_out
    if url.startswith(PIPE) or _is_packed(url):
        yield from _of_each(_sequential, expand([url], sequential=True), jobs, left_out)
        return
    try:
        index = DatasetIndex.load(url)
    except DataError as error:
        yield Finding(display(url), None, None, str(error))
        yield from _of_each(_unindexed, _tars(url, left_out), jobs, left_out)
        return
    with closing(index):
        for found, more in each(partial(_shard, index), range(len(index.shards)), jobs):
            left_out.merge(more)
            yield from found
        yield from repeated(index)
    yield from _strangers(index, left_out)


def _is_packed(url: str) -> bool:
    """Whether `url` names shards that have no index because only a reader from front to back can take them."""
    names = [storage.bare(tar) for tar in meant(url)]
    return any(unpack.by_name(name) is not None and not tarwalk.is_shard(name) for name in names)


def _of_each(
    look: Callable[[str], tuple[list[Finding], LeftOut]], tars: Sequence[str], jobs: int, left_out: LeftOut
) -> Iterator[Finding]:
    for found, more in each(look, tars, jobs):
        left_out.merge(more)
        yield from found


def _tars(url: str, left_out: LeftOut) -> list[str]:
    try:
        return expand([url], sequential=True, left_out=left_out)
    except DataError:  # the index has been missed already
        return []


def _unindexed(tar: str) -> tuple[list[Finding], LeftOut]:
    name, left_out = storage.name_of(tar), LeftOut()
    if not tarwalk.is_shard(name):
        return _sequential(tar)
    try:
        rows, _, _ = scan(tar, None, left_out)
    except DataError as error:
        return [_structural(name, error)], left_out
    return [] if rows else [Finding(name, None, 0, "the shard has no samples")], left_out


def _sequential(url: str) -> tuple[list[Finding], LeftOut]:
    """Of what is read from front to back, up to the first damage of its structure; a command that fails is one too."""
    found: list[Finding] = []
    samples, left_out = 0, LeftOut()
    try:
        for key, fields in samples_of(url, None, left_out):
            samples += 1
            found += _undecodable(display(url), key, fields, dict.fromkeys(fields))
    except DataError as error:
        return [*found, _structural(display(url), error)], left_out
    return found if samples else [*found, Finding(display(url), None, 0, "the shard has no samples")], left_out


def _structural(shard: str, error: DataError) -> Finding:
    cause = error.cause or str(error)
    return Finding(shard, error.key, error.offset, f"{cause}; {error.advice}" if error.advice else cause)


def repeated(index: DatasetIndex) -> Iterator[Finding]:
    """Keys that stand in two shards, from the sidecars alone: one finding per pair of shards, named at the second."""
    shards = np.repeat(np.arange(len(index.shards)), [shard.samples for shard in index.shards])
    try:
        hashes = np.fromiter(map(_hash, range(len(index)), repeat(index)), np.uint64, len(index))
    except DataError:  # of a sidecar, which the look into its shard has named
        return
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for first, second in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
        if shards[first] != shards[second] and index.row(first)[1].key == index.row(second)[1].key:
            pairs.setdefault((int(shards[first]), int(shards[second])), []).append((first, second))
    for (earlier, later), found in sorted(pairs.items()):
        found.sort(key=lambda pair: pair[1])
        yield _twice(index, index.shards[earlier].name, index.shards[later].name, found)


def _hash(number: int, index: DatasetIndex) -> int:
    return int.from_bytes(hashlib.blake2b(index.row(number)[1].key.encode(), digest_size=8).digest(), "little")


def _twice(index: DatasetIndex, earlier: str, later: str, found: list[tuple[int, int]]) -> Finding:
    """In words: is it the same data twice, or are there two samples of one name?"""
    contents = [[_content(index.row(number)[1]) for number in pair] for pair in found]
    equal, row = sum(first == second for first, second in contents), index.row(found[0][1])[1]
    what = f"{len(found)} keys of this shard stand in {earlier} too, the first is {row.key!r}"
    data = f"{equal} of them with the same data; `bigssl shards clean --drop duplicates` keeps one of each"
    return Finding(later, row.key, row.origin, f"{what}, {data if equal else 'with other data: one name, two samples'}")


def _content(row: Row) -> dict[str, tuple[int, int]]:
    return {name: (member.length, member.crc32) for name, member in row.members.items()}


def _shard(index: DatasetIndex, number: int) -> tuple[list[Finding], LeftOut]:
    shard, left_out = index.shards[number], LeftOut()
    found: list[Finding] = []
    changed: Finding | None = None
    if not shard.samples:
        found.append(Finding(shard.name, None, 0, "the shard has no samples"))
    try:
        if not storage.exists(shard.url, index.remote):
            return [*found, Finding(shard.name, None, None, "the shard is missing")], left_out
        rows, checksum, size = scan(shard.url, index.remote, left_out)
        changed = _change(shard, checksum, size)
        found += _disagreements(index, number, rows) if changed is None else []
    except OSError as error:
        return [*found, Finding(shard.name, None, None, f"the shard cannot be read ({error})")], left_out
    except DataError as error:
        found.append(_structural(shard.name, error))
    found += _samples(index, number)
    return found if found or changed is None else [changed], left_out


def _disagreements(index: DatasetIndex, number: int, rows: Sequence[Row]) -> Iterator[Finding]:
    """Where the rows of the index are not those that are read from the same file today."""
    first, shard = int(index.offsets[number]), index.shards[number]
    try:
        told = {row.key: row for _, row in map(index.row, range(first, first + shard.samples))}
    except DataError:  # of the sidecar, which `_samples` names
        return
    there = {row.key: row for row in rows}
    kinds = {
        "samples are not in the index": [key for key in there if key not in told],
        "samples of the index are not in the shard": [key for key in told if key not in there],
        "samples have other bytes or fields than in the index": [
            key for key, row in there.items() if not _same(told.get(key, row), row)
        ],
    }
    for what, keys in kinds.items():
        if keys:
            origin = (told | there)[keys[0]].origin
            cause = f"{len(keys)} {what}, the first {keys[0]!r}; run `bigssl shards index`"
            yield Finding(shard.name, keys[0], origin, cause)


def _same(told: Row, there: Row) -> bool:
    """Whether they agree; of an earlier index, which has no checksums of parts, in the rest."""
    if told._replace(members={}) != there._replace(members={}) or told.members.keys() != there.members.keys():
        return False
    pairs = [(member, there.members[name]) for name, member in told.members.items()]
    return all(one[:3] == other[:3] and one.parts in ("", other.parts) for one, other in pairs)


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
    only_text = decode.only_json(fields)
    for name, data in fields.items():
        try:
            decode.check_field(name, data, only_text=only_text)
        except DataError as error:
            yield Finding(shard, key, offsets[name], f"field {name!r}: {error}")


def _role(name: str) -> str:
    """What a field is to its sample: pictures in different formats stand for one another, and so does sound."""
    prefix, dot, kind = name.rpartition(".")
    for kinds in (decode.IMAGES, decode.AUDIO):
        if kind in kinds:
            return f"{prefix}{dot}{' or '.join(kinds)}"
    return name


def _strangers(index: DatasetIndex, left_out: LeftOut) -> Iterator[Finding]:
    """Shards that lie in a local folder but not in its manifest: a run would never read them."""
    folder = storage.local_path(index.url) if storage.is_local(index.url) else None
    if folder is None or not folder.is_dir():
        return
    known = {shard.name for shard in index.shards}
    for path in sorted(folder.iterdir()):
        if unpack.by_name(path.name) is None or path.name in known:
            continue
        if path.name.startswith("."):
            left_out.add(leftout.HIDDEN, path.name)
        else:
            yield Finding(path.name, None, None, f"the shard is not in the index; {_to_index(path.name)}")


def _to_index(name: str) -> str:
    """What brings a shard into the index of its folder."""
    again = "run `bigssl shards index` on the folder"
    if tarwalk.is_shard(name):
        return again
    remove = " --rm" if unpack.by_name(name) == "zstd" else ""  # the others do it anyway
    return f"`{unpack.by_name(name)} -d{remove} {shlex.quote(name)}` and {again}, or move it into a folder of its own"
