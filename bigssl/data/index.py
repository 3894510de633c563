"""What is in a dataset: shards, samples, and the bytes of every field.

Beside the shards lie `NAME.tar.idx`, one per shard (a header line, then one JSON line per sample), and `index.json`,
the manifest (the header lines of all of them). The manifest alone fixes the order of a run; a sidecar is read when
the first of its samples is, kept as raw bytes, and parsed line by line, so a million samples cost neither start-up
nor memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np

from bigssl.data import storage, tarwalk
from bigssl.data.errors import DataError, damaged, display
from bigssl.data.sidecar import (
    FORMAT,
    SIDECAR,
    Member,
    Row,
    ShardInfo,
    Sidecar,
    parse,
    read_index,
    read_sidecar,
    to_line,
)

__all__ = ["DataError", "DatasetIndex", "Member", "Row", "ShardInfo", "build_index"]

MANIFEST = "index.json"


class DatasetIndex:
    """All samples of a dataset, numbered in the order of the manifest. Build with `load`."""

    def __init__(self, url: str, shards: Sequence[ShardInfo]) -> None:
        self.url = url
        self.shards = tuple(shards)
        self.offsets = np.cumsum([0, *(shard.samples for shard in self.shards)])
        self._starts: list[int] = self.offsets.tolist()
        self._sidecars: dict[int, Sidecar] = {}
        self._check()

    def _check(self) -> None:
        names = [shard.name for shard in self.shards]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise DataError(
                f"dataset {display(self.url)}: several shards are called {double[0]!r}; give each its own name"
            )
        if not len(self):
            raise DataError(
                f"dataset {display(self.url)}: no samples in {len(names)} shards; pack it with `bigssl shards pack`"
            )

    @classmethod
    def load(cls, url: str | os.PathLike[str]) -> DatasetIndex:
        """The index of a folder with a manifest, or of tar paths (one, or a brace pattern) with sidecars beside them.

        Raises DataError when there is no index, naming the command that builds one.
        """
        url = os.fspath(url)
        if tarwalk.is_shard(url):
            urls = list(braceexpand.braceexpand(url))
            return cls(url, [_from_header(u, *read_sidecar(u + SIDECAR, url)) for u in urls])
        manifest = url if url.endswith(".json") else storage.join(url, MANIFEST)
        raw = parse(read_index(manifest, url), manifest, url)
        folder = os.path.dirname(manifest)
        return cls(url, [_from_manifest(folder, manifest, url, entry) for entry in raw.get("shards", [])])

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that any sample has."""
        return tuple(sorted({field for shard in self.shards for field in shard.fields}))

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex over names, counts and checksums: equal for equal data, wherever it lies."""
        content = [(shard.name, shard.samples, shard.checksum) for shard in self.shards]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def shard_of(self, number: int) -> int:
        """Which shard holds sample `number`."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)} in {display(self.url)}")
        return bisect_right(self._starts, number) - 1

    def row(self, number: int) -> tuple[ShardInfo, Row]:
        """Shard and row of sample `number`. Raises DataError when the sidecar is missing or damaged."""
        shard = self.shard_of(number)
        return self.shards[shard], self.sidecar(shard).row(number - self._starts[shard])

    def entry(self, number: int) -> tuple[ShardInfo, str, dict[str, Member]]:
        """Shard, key and fields of sample `number`."""
        shard, row = self.row(number)
        return shard, row.key, row.members

    def sidecar(self, shard: int) -> Sidecar:
        """The parsed-on-demand sidecar of shard number `shard`."""
        if shard not in self._sidecars:
            self._sidecars[shard] = Sidecar(self.shards[shard], self.url)
        return self._sidecars[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sidecars": {}}


def _from_header(url: str, sidecar: bytes, header: dict[str, Any]) -> ShardInfo:
    checksum = hashlib.sha256(sidecar).hexdigest()
    return _shard(url, url + SIDECAR, header | {"index_sha256": checksum})


def _from_manifest(folder: str, manifest: str, dataset: str, entry: dict[str, Any]) -> ShardInfo:
    try:
        return _shard(storage.join(folder, entry["path"]), storage.join(folder, entry["name"] + SIDECAR), entry)
    except (KeyError, TypeError) as error:
        again = f"run `bigssl shards index {display(dataset)}`"
        raise DataError(f"index {display(manifest)}: a shard without {error}; {again}") from error


def _shard(url: str, index_url: str, entry: dict[str, Any]) -> ShardInfo:
    checksums = (entry["sha256"], entry["index_sha256"])
    return ShardInfo(
        entry["name"], url, index_url, entry["samples"], entry["bytes"], *checksums, tuple(entry["fields"])
    )


def expand(urls: Iterable[str]) -> list[str]:
    """Tars named by paths, URLs, brace patterns and folders, in that order. Raises DataError when there is none."""
    tars: list[str] = []
    for url in urls:
        folder = storage.local_path(url) if storage.is_local(url) else None
        if folder is not None and folder.is_dir():
            tars += sorted(str(path) for path in folder.iterdir() if tarwalk.is_shard(path.name))
        elif tarwalk.is_shard(url):
            tars += braceexpand.braceexpand(url)
        else:
            raise DataError(f"{display(url)} is neither a folder nor a shard (.tar, .tar.gz, .tgz)")
    if not tars:
        raise DataError(f"{', '.join(map(display, urls))}: no shards (.tar, .tar.gz, .tgz)")
    return tars


def build_index(tars: Iterable[str | os.PathLike[str]], manifest_folder: str | os.PathLike[str]) -> DatasetIndex:
    """Reads every shard once and writes sidecars and manifest into `manifest_folder`; returns the index.

    `tars`: paths or URLs; local ones inside the folder are recorded relative to it. Raises DataError at the first
    damaged byte, at a shard without samples, and at two shards of one name. Files appear under their names only when
    complete.
    """
    folder = Path(manifest_folder)
    entries: list[dict[str, Any]] = []
    for path in tars:
        tar = os.fspath(path)
        entry = _index_shard(tar, folder)
        if any(entry["name"] == other["name"] for other in entries):
            raise DataError(f"two shards are called {entry['name']!r} (the second is {display(tar)}); rename one")
        entries.append(entry)
    manifest = {"format": FORMAT, "samples": sum(entry["samples"] for entry in entries), "shards": entries}
    write_atomic(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return DatasetIndex.load(folder)


def _index_shard(tar: str, folder: Path) -> dict[str, Any]:
    name = os.path.basename(tar)
    rows, checksum, size = scan(tar)
    if not rows:
        raise damaged(tar, key=None, offset=0, cause="the shard has no samples")
    fields = sorted({field for row in rows for field in row.members})
    facts = {"name": name, "samples": len(rows), "bytes": size, "sha256": checksum, "fields": fields}
    lines = [json.dumps({"format": FORMAT, **facts}), *map(to_line, rows)]
    sidecar = ("\n".join(lines) + "\n").encode()
    write_atomic(folder / (name + SIDECAR), sidecar)
    return {"path": _relative(tar, folder), "index_sha256": hashlib.sha256(sidecar).hexdigest(), **facts}


def _relative(tar: str, folder: Path) -> str:
    if not storage.is_local(tar):
        return tar
    path = storage.local_path(tar).resolve()
    return str(path.relative_to(folder.resolve())) if path.is_relative_to(folder.resolve()) else str(path)


def scan(tar: str) -> tuple[list[Row], str, int]:
    """Rows of a shard in order, its SHA-256 and its size in bytes. Raises DataError."""
    try:
        with storage.open_stream(tar) as raw:
            file = tarwalk.Hashing(raw)
            groups = list(tarwalk.group(tarwalk.walk(file, tar), tar))
            checksum = file.finish()
    except OSError as error:
        raise damaged(tar, key=None, offset=None, cause=f"cannot be read ({error.strerror or error})") from error
    rows = [_row(group, group.start, group.stop - group.start) for group in groups]
    return _compressed_rows(tar, rows, file.bytes) if tarwalk.is_compressed(tar) else rows, checksum, file.bytes


def _row(group: tarwalk.Group, start: int, length: int) -> Row:
    members = {field: Member(e.offset, e.length, e.crc32) for field, e in group.fields.items()}
    return Row(group.key, start, length, group.start, members)


def _compressed_rows(tar: str, rows: list[Row], size: int) -> list[Row]:
    """Rows with `start` and `length` in the compressed file: from a sample's flush point to the next sample's."""
    points = tarwalk.flush_points(storage.local_path(tar)) if storage.is_local(tar) else {}
    missing = [row for row in rows if row.origin not in points]
    if missing:
        cause = "compressed without flush points, so samples cannot be read by range; unpack it, or pack it anew"
        raise damaged(tar, key=missing[0].key, offset=missing[0].origin, cause=cause)
    starts = [points[row.origin] for row in rows]
    stops = [*starts[1:], size]
    return [row._replace(start=a, length=b - a) for row, a, b in zip(rows, starts, stops, strict=True)]


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` so that `path` is either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.staging")
    with staging.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staging, path)
