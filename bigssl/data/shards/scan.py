"""Reads one shard from front to back and says where its samples lie."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from bigssl.data.errors import damaged
from bigssl.data.remote.client import Remote
from bigssl.data.shards import storage, tarwalk
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.shards.sidecar import Member, Row
from bigssl.files import DiskFull, writing


def scan(tar: str, remote: Remote | None = None, left_out: LeftOut | None = None) -> tuple[list[Row], str, int]:
    """Rows of a shard in order, its SHA-256 and its size in bytes. left_out: as of `tarwalk.group`. Raises
    DataError."""
    try:
        if tarwalk.is_compressed(storage.bare(tar)) and not storage.is_local(tar):
            with tempfile.TemporaryDirectory() as folder:  # flush points are searched for in a file
                return _scan(tar, _download(tar, Path(folder), remote), remote, left_out)
        return _scan(tar, tar, remote, left_out)
    except DiskFull:
        raise
    except OSError as error:
        raise damaged(tar, key=None, offset=None, cause=f"cannot be read ({error.strerror or error})") from None


def _download(tar: str, folder: Path, remote: Remote | None) -> str:
    path = folder / storage.name_of(tar)
    with storage.open_stream(tar, remote) as source, writing(path), path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return str(path)


def _scan(tar: str, file: str, remote: Remote | None, left_out: LeftOut | None) -> tuple[list[Row], str, int]:
    """As `scan`, of the bytes in `file`; messages name `tar`."""
    with storage.open_stream(file, remote) as raw:
        hashed = tarwalk.Hashing(raw)
        unpacked = tarwalk.opened_tar(hashed, storage.bare(tar))
        groups = list(tarwalk.group_entries(tarwalk.walk(unpacked, storage.bare(tar)), tar, left_out))
        checksum = hashed.finish()
    compressed = tarwalk.is_compressed(storage.bare(tar))
    rows = [_row(group, compressed) for group in groups]
    return _compressed_rows(tar, file, rows, hashed.bytes) if compressed else rows, checksum, hashed.bytes


def _row(group: tarwalk.FileGroup, compressed: bool) -> Row:
    """compressed: parts of a member cannot be read alone, so that their checksums would say nothing."""
    members = {field: Member(e.offset, e.length, e.crc32, "" if compressed else e.parts)
               for field, e in group.fields.items()}  # fmt: skip
    return Row(group.key, group.start, group.stop - group.start, group.start, members)


def _compressed_rows(tar: str, file: str, rows: list[Row], size: int) -> list[Row]:
    """Rows with `start` and `length` in the compressed file: from a sample's flush point to the next sample's."""
    points = tarwalk.flush_points(storage.local_path(file))
    missing = [row for row in rows if row.origin not in points]
    if missing:
        cause = "compressed without flush points, so samples cannot be read by range"
        advice = "unpack it, pack it anew (`bigssl shards pack --compress`), or set data.sources.NAME.sequential=true"
        raise damaged(tar, key=missing[0].key, offset=missing[0].origin, cause=cause, advice=advice)
    starts = [points[row.origin] for row in rows]
    stops = [*starts[1:], size]
    return [row._replace(start=a, length=b - a) for row, a, b in zip(rows, starts, stops, strict=True)]
