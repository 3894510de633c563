"""Writes shards: through webdataset's writer, with the index, in one piece or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import webdataset
from tqdm import tqdm

from bigssl.data import tarwalk
from bigssl.data.errors import DataError
from bigssl.data.index import DatasetIndex, build_index
from bigssl.data.sources import Item
from bigssl.data.tarwalk import split_name


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
) -> dict[str, DatasetIndex]:
    """Packs `items` into shards `NAME-000000.tar`, ... with sidecars and manifest; returns the index of each part.

    split: ("val", .1) makes `folder/val` of a tenth of the groups and `folder/train` of the rest. shuffle: by a hash of
    (seed, key) instead of the order of the source. compress: gzip that can still be read by range, for small samples,
    of which a tar is half padding. The same items give the same bytes. Everything is written beside `folder` and
    renamed when it is complete. Raises DataError for unusable or repeated keys and when `folder` exists without
    `overwrite`.
    """
    folder = Path(folder)
    if shard_size < 1:
        raise DataError(f"shard size {shard_size}: 1 or more samples are allowed")
    if folder.exists() and not overwrite:
        raise DataError(f"{folder} exists; pack into another folder or give --overwrite")
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for part, members in _parts(list(items), name, split, seed).items():
            ordered = sorted(members, key=lambda item: _hash(seed, item.key)) if shuffle else members
            label = f"{name}-{part}" if part else name
            tars = list(_write_shards(ordered, staging / part, label, shard_size, compress))
            build_index(tars, staging / part)
        _replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    parts = ["train", split[0]] if split else [""]
    return {part: DatasetIndex.load(folder / part) for part in parts}


def _parts(items: Sequence[Item], name: str, split: tuple[str, float] | None, seed: int) -> Mapping[str, list[Item]]:
    _check_keys(items)
    if split is None:
        return {"": list(items)}
    part, fraction = split
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
    seen: set[str] = set()
    for item in items:
        parts = item.key.split("/")
        if split_name(f"{item.key}.x") != (item.key, "x") or item.key.startswith("__") or {"", ".", ".."} & set(parts):
            raise DataError(f"key {item.key!r} cannot name a sample: it must be relative, its last part without a dot")
        if item.key in seen:
            raise DataError(f"key {item.key!r} occurs twice in the source; keys must be unique")
        seen.add(item.key)


def _write_shards(items: Sequence[Item], folder: Path, name: str, size: int, compress: bool) -> Iterator[Path]:
    folder.mkdir(parents=True)
    progress = tqdm(total=len(items), desc=f"packing {name}", unit="sample", disable=None)
    for number, begin in enumerate(range(0, len(items), size)):
        tar = folder / f"{name}-{number:06d}.tar"
        _write_tar(items[begin : begin + size], tar)
        progress.update(len(items[begin : begin + size]))
        yield _compress(tar) if compress else tar
    progress.close()


def _write_tar(items: Sequence[Item], tar: Path) -> None:
    # names, owner, mode and time are fixed, fields are sorted by the writer: equal samples, equal bytes
    with tar.open("wb") as file:
        with webdataset.TarWriter(file, user="bigssl", group="bigssl", mtime=0, encoder=False) as writer:
            for item in items:
                writer.write({"__key__": item.key, **_load(item)})
        file.flush()
        os.fsync(file.fileno())


def _load(item: Item) -> dict[str, bytes]:
    try:
        return item.load()
    except OSError as error:
        raise DataError(f"sample {item.key!r}: {error.filename or ''} cannot be read ({error.strerror})") from error


def _compress(tar: Path) -> Path:
    with tar.open("rb") as file:
        boundaries = [group.start for group in tarwalk.group(tarwalk.walk(file, str(tar)), str(tar))]
    target = tar.with_name(tar.name + ".gz")
    tarwalk.compress(tar, target, boundaries)
    tar.unlink()
    return target


def _replace(staging: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(staging, folder)
    shutil.rmtree(old, ignore_errors=True)
