"""Writes datasets of shards: in parallel, in one piece or not at all, and on from where an interrupted run stopped."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from bigssl.data.errors import DataError
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools import staged
from bigssl.data.tools.jobs import each
from bigssl.data.tools.parts import by_time
from bigssl.data.tools.sources.base import Item, Keys
from bigssl.data.tools.staged import ShardPlan
from bigssl.files import write_atomic, writing


def split_by_key(key: str, fraction: float, seed: int = 0) -> bool:
    """True for about `fraction` of all keys, always the same ones: a hash of (seed, key) decides, not the order."""
    return _hash(seed, key) < fraction * 2.0**64


def _hash(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest(), "big")


def pack(
    items: Iterable[Item],
    folder: str | os.PathLike[str],
    *,
    name: str,
    shard_size: int = 10_000,
    split: tuple[str, float] | None = None,
    seed: int = 0,
    shuffle: bool = False,
    compress: bool = False,
    overwrite: bool = False,
    jobs: int = 1,
    beside: Mapping[str, bytes] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, DatasetIndex]:
    """Packs `items` into shards `NAME-000000.tar`, ... with sidecars and manifest; returns the index of each part.

    split: ("val", .1) makes `folder/val` of a tenth of the groups and `folder/train` of the rest, or of the last tenth
    of the time of each series where the items are stretches of one (see `by_time`). shuffle: by a hash of
    (seed, key) instead of the order of the source. compress: gzip that can still be read by range, for small samples,
    of which a tar is half padding. jobs: processes, each of which writes one shard at a time. The same items give the
    same bytes, however many there are. beside: further files of `folder`. Everything is written next to `folder` and
    renamed when it is complete; after an interruption the same call keeps the finished shards whose sources are as
    they were. note: is told about that, and about a split by time. Raises DataError for unusable or repeated keys and
    when `folder` holds anything without `overwrite`.
    """
    folder = Path(folder)
    if shard_size < 1:
        raise DataError(f"shard size {shard_size}: 1 or more samples are allowed")
    refuse_existing(folder, overwrite)
    parts = _parts(list(items), name, split, seed, note)
    plans = _plans(parts, name, shard_size, seed if shuffle else None, compress)
    with writing(folder), staged.staged(folder) as staging:
        _write(plans, staging, name, jobs, note)
        staged.assemble(plans, staging)
        for file, data in (beside or {}).items():
            write_atomic(staging / file, data)
        _replace(staging, folder)
    return {part: DatasetIndex.load(folder / part) for part in parts}


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Raises DataError where writing `folder` would replace something and that is not wanted."""
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not overwrite and not empty:
        raise DataError(f"{folder} exists; pack into another folder or give --overwrite")


def _parts(
    items: Sequence[Item], name: str, split: tuple[str, float] | None, seed: int, note: Callable[[str], None]
) -> Mapping[str, list[Item]]:
    _check_keys(items)
    if split is None:
        return {"": list(items)}
    part, fraction = split
    if items[0].stretch is not None:
        divided = by_time(items, part, fraction)
        note(divided.said)
        return divided.parts
    parts: dict[str, list[Item]] = {"train": [], part: []}
    for item in items:
        parts[part if split_by_key(item.group, fraction, seed) else "train"].append(item)
    empty = [part for part, members in parts.items() if not members]
    if empty:
        raise DataError(f"pack {name}: no samples for {empty[0]!r} with a fraction of {fraction}; choose another")
    return parts


def _check_keys(items: Sequence[Item]) -> None:
    if not items:
        raise DataError("nothing to pack: the source has no samples")
    keys = Keys()
    for item in items:
        keys.add(item.key)


def _plans(
    parts: Mapping[str, list[Item]], name: str, size: int, shuffle: int | None, compress: bool
) -> list[ShardPlan]:
    plans = []
    for part, members in parts.items():
        if shuffle is not None:
            members.sort(key=lambda item: _hash(shuffle, item.key))
        label = f"{name}-{part}" if part else name
        for number, begin in enumerate(range(0, len(members), size)):
            plans.append(ShardPlan(part, f"{label}-{number:06d}", members[begin : begin + size], compress))
    return plans


def _write(plans: Sequence[ShardPlan], staging: Path, name: str, jobs: int, note: Callable[[str], None]) -> None:
    found = staged.forget_others(plans, staging)
    if found:
        note(f"{staging} is from an interrupted run: {found} finished shards are compared with their sources")
    kept = outdated = 0
    total = sum(len(plan.items) for plan in plans)
    with tqdm(total=total, desc=f"packing {name}", unit="sample", disable=None) as progress:
        for written in each(partial(staged.write_shard, staging=staging), plans, jobs):
            progress.update(written.samples)
            kept, outdated = kept + written.kept, outdated + written.outdated
    if outdated:
        note(f"{outdated} of them were made from other sources or options and have been written anew")
    if kept:
        note(f"{kept} of {len(plans)} shards were there already")


def _replace(staging: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(staging, folder)
    shutil.rmtree(old, ignore_errors=True)
