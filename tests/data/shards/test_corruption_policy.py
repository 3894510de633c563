"""Every row of promise 4 under both policies: `raise` names the sample, `skip` puts the next good one of the epoch in
its place and changes nothing else, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigssl.config import limits
from bigssl.config.limits import Limits
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.loading.loader import Batch, make_loader
from bigssl.data.order.stream import Stream, read_in_order
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.verify import verify

COUNTS = (3, 3)
TOTAL, STEPS, BATCH = sum(COUNTS), 3, 2
Damage = Callable[[DatasetIndex], set[str]]
# does its damage to shard 1, and returns the keys of the samples that it ruins


def shard(index: DatasetIndex) -> Path:
    return Path(index.shards[1].url)


def keys_of(index: DatasetIndex) -> dict[str, int]:
    """key -> end of its last file, of shard 1."""
    rows = [index.row(number)[1] for number in range(COUNTS[0], TOTAL)]
    return {row.key: max(m.offset + m.length for m in row.members.values()) for row in rows}


def edit(index: DatasetIndex, at: int) -> None:
    data = bytearray(shard(index).read_bytes())
    data[at] ^= 1
    shard(index).write_bytes(bytes(data))


def truncate(at: int) -> Damage:
    def damage(index: DatasetIndex) -> set[str]:
        shard(index).write_bytes(shard(index).read_bytes()[:at])
        return {key for key, end in keys_of(index).items() if end > at}

    return damage


def flip_header(at: int) -> Damage:
    def damage(index: DatasetIndex) -> set[str]:
        edit(index, at)
        return set()  # samples are read by range: a reader of tars would lose the rest, this one loses nothing

    return damage


def flip_payload(key: str, at: int) -> Damage:
    def damage(index: DatasetIndex) -> set[str]:
        edit(index, at)
        return {key}

    return damage


def missing(index: DatasetIndex) -> set[str]:
    shard(index).unlink()
    return set(keys_of(index))


def empty(index: DatasetIndex) -> set[str]:
    shard(index).write_bytes(bytes(10240))  # a tar of nothing
    return set(keys_of(index))


def changed(index: DatasetIndex) -> set[str]:
    shard(index).write_bytes(Path(index.shards[0].url).read_bytes().ljust(shard(index).stat().st_size, b"\0"))
    return set(keys_of(index))


def zeroed_member(index: DatasetIndex) -> set[str]:
    """A member that is gone: its header and its bytes are zeros."""
    row = index.row(COUNTS[0] + 2)[1]
    member = row.members["jpg"]
    data = bytearray(shard(index).read_bytes())
    data[member.offset - 512 : member.offset + member.length] = bytes(512 + member.length)
    shard(index).write_bytes(bytes(data))
    return {row.key}


def structure(index: DatasetIndex) -> Iterator[tuple[str, int, int]]:
    """(key, byte of the header, length) of every file of shard 1."""
    for number in range(COUNTS[0], TOTAL):
        row = index.row(number)[1]
        for member in row.members.values():
            yield row.key, member.offset - 512, member.length


def damages(index: DatasetIndex) -> Iterator[Damage]:
    """Every row at every boundary of the tar's structure."""
    yield from (missing, empty, changed, zeroed_member)
    for key, header, length in structure(index):
        body = header + 512
        for cut in (header, header + 1, header + 511, body, body + 1, body + length - 1, body + length):
            yield truncate(cut)
        yield flip_header(header + 150)
        yield flip_header(header)
        yield flip_payload(key, body)
        yield flip_payload(key, body + length - 1)


def picture(sample: Sample, generator: np.random.Generator, more: object) -> dict[str, Any]:
    decode.image(sample.fields["jpg"])
    return {"position": sample.position}


def batches(index: DatasetIndex, policy: str, rank: int = 0, world: int = 1, workers: int = 0) -> list[Batch]:
    """One epoch."""
    stream = Stream(DatasetIndex.load(index.url), seed=3, lanes=2, on_error=policy)
    loader = make_loader(
        {"": stream}, {"": BATCH}, picture, dict, seed=0, rank=rank, world=world, accum=1, workers=workers,
        start_step=0, stop_step=STEPS, device_pin=False,
    )  # fmt: skip
    return list(loader)


def epoch(index: DatasetIndex, policy: str, world: int = 1) -> list[list[str]]:
    """Keys of each step, ranks in order."""
    ranks = [batches(index, policy, rank, world) for rank in range(world)]
    return [[key for batch in step for key in batch.keys[""]] for step in zip(*ranks, strict=True)]


def in_place_of_bad(index: DatasetIndex, bad: set[str]) -> list[list[str]]:
    """What the epoch should be: by hand, from the order of the sound data."""
    stream = Stream(index, seed=3, lanes=2)
    order = [index.row(stream.locate(position)[1])[1].key for position in range(TOTAL)]

    def stand_in(position: int) -> str:
        return next(key for step in range(TOTAL) if (key := order[(position + step) % TOTAL]) not in bad)

    steps = [stream.global_batch(step, BATCH) for step in range(STEPS)]
    return [[stand_in(int(position)) for position in step] for step in steps]


def check(index: DatasetIndex, bad: set[str]) -> None:
    """Verify finds the damage; both policies do what they say."""
    assert list(verify(index.url))
    expected = in_place_of_bad(index, bad)
    shown = batches(index, "skip")
    assert [batch.keys[""] for batch in shown] == epoch(index, "skip", world=2) == expected
    errors = {bad.cause for batch in shown for bad in batch.errors}
    assert {key for key in bad if any(f"sample {key!r}" in error for error in errors)} == bad
    assert all(index.shards[1].name in error for error in errors)
    if not bad:
        assert epoch(index, "raise") == expected
        return
    with pytest.raises(DataError) as caught:
        batches(index, "raise")
    assert any(f"sample {key!r}" in str(caught.value) for key in bad)


def test_every_damage_at_every_boundary(dataset) -> None:
    index = dataset(COUNTS, pictures=True)
    whole = shard(index).read_bytes()
    order = in_place_of_bad(index, set())
    assert epoch(index, "raise") == order
    assert sorted(sum(order, [])) == sorted(sample.key for sample in read_in_order(index))
    tried = 0
    for damage in damages(index):
        check(index, damage(index))
        shard(index).write_bytes(whole)
        tried += 1
    assert tried == 4 + 11 * 3 * COUNTS[1]
    assert not list(verify(index.url))


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut off"])
def test_undecodable_pictures(dataset, data: bytes) -> None:
    sound, bad = dataset(COUNTS, pictures=True), {"s-00003", "s-00005"}

    def fields(sample: Sample) -> dict[str, bytes]:
        return sample.fields | ({"jpg": data} if sample.key in bad else {})

    items = [Item(s.key, s.key, lambda s=s: fields(s)) for s in read_in_order(sound)]  # type: ignore[misc]
    index = pack(items, Path(sound.url + "-bad"), name="x", shard_size=COUNTS[0])[""]
    assert {finding.key for finding in verify(index.url)} == bad
    assert epoch(index, "skip") == epoch(index, "skip", world=2) == in_place_of_bad(index, bad)
    with pytest.raises(DataError, match="sample 's-0000[35]': undecodable image"):
        batches(index, "raise")


@pytest.mark.parametrize("workers", [0, 1])
def test_limits_reach_the_decoders_of_a_run(dataset, workers: int) -> None:
    index = dataset(COUNTS, pictures=True)
    with limits.applied(Limits(image_pixels=32 * 32)):
        assert len(batches(index, "raise", workers=workers)) == STEPS
    with (
        limits.applied(Limits(image_pixels=32 * 32 - 1)),
        pytest.raises(DataError, match="sample 's-0000[0-5]': picture of 32×32 pixels refused: 1024 is over the limit"),
    ):
        batches(index, "raise", workers=workers)


def test_two_urls_with_one_name(dataset) -> None:
    index, other = dataset(COUNTS), dataset(COUNTS)
    folders = ",".join(Path(i.url).name for i in (index, other))
    url = f"{Path(index.url).parent}/{{{folders}}}/shard-001.tar"
    with pytest.raises(DataError, match=r"several shards are called 'shard-001\.tar'"):
        DatasetIndex.load(url)
    findings = list(verify(url))
    assert findings[0].shard == url
    assert "several shards are called 'shard-001.tar'; give each its own name" in findings[0].cause


def test_commands_are_read_to_their_end(dataset) -> None:
    """A producer that fails late has delivered a whole tar: only its exit status tells."""
    index = dataset(COUNTS, pictures=True)
    whole = f"pipe:cat {shard(index)}"
    assert list(verify(whole)) == []
    for command, cause in (
        (f"{whole}; exit 3", "exit status 3"),
        (f"pipe:head -c 5000 {shard(index)}", "truncated"),
        (f"pipe:false | cat {shard(index)}", "exit status 1"),
        ("pipe:true", "truncated"),
    ):
        (found,) = verify(command, jobs=2)
        assert found.shard.startswith("pipe:") and cause in found.cause, command
    edit(index, index.row(4)[1].members["txt"].offset)  # nothing but the index knows what should be there
    assert list(verify(whole)) == []
    edit(index, index.row(4)[1].members["jpg"].offset)
    (found,) = verify(whole)
    assert (found.key, "field 'jpg': undecodable image" in found.cause) == ("s-00004", True)
