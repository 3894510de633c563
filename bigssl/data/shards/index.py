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
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bigssl.config.recipe import RemoteConfig
from bigssl.data.errors import DataError, damaged, display
from bigssl.data.remote.client import Remote, RemoteError
from bigssl.data.shards import storage, unpack
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.shards.scan import scan
from bigssl.data.shards.sidecar import (
    FORMAT,
    SIDECAR,
    Member,
    Row,
    ShardInfo,
    Sidecar,
    Sidecars,
    parse_row,
    read_indexes,
    to_line,
)
from bigssl.data.shards.urls import meant, refuse_packing, refuse_pipe
from bigssl.files import write_atomic

__all__ = ["DataError", "DatasetIndex", "Member", "Row", "ShardInfo", "build_index", "scan"]

MANIFEST = "index.json"


class DatasetIndex:
    """All samples of a dataset, numbered in the order of the manifest. Build with `load`."""

    def __init__(self, url: str, shards: Sequence[ShardInfo], remote: Remote | None = None) -> None:
        self.url = url
        self.shards = tuple(shards)
        self.remote = remote or Remote()
        self.offsets = np.cumsum([0, *(shard.samples for shard in self.shards)])
        self._starts: list[int] = self.offsets.tolist()
        self._sidecars = Sidecars(url, self.shards, self.remote)
        self._check()

    def _check(self) -> None:
        names = [shard.name for shard in self.shards]
        double = sorted(name for name, times in Counter(names).items() if times > 1)
        if double:
            raise DataError(
                f"dataset {display(self.url)}: several shards are called {double[0]!r}; give each its own name"
            )
        if not len(self):
            raise DataError(
                f"dataset {display(self.url)}: no samples in {len(names)} shards; pack it with `bigssl shards pack`"
            )

    @classmethod
    def load(cls, url: str | os.PathLike[str], config: RemoteConfig | None = None) -> DatasetIndex:
        """The index of a folder with a manifest, or of tar paths (see `urls.meant`) with sidecars beside them.

        config: how URLs are read. Raises DataError when there is no index, naming the command that builds one.
        """
        given = os.fspath(url)
        refuse_pipe(given)
        found = meant(given)
        with Remote(config) as remote:  # closed again: threads of this process would not survive in forked workers
            if all(unpack.by_name(storage.bare(url)) is not None for url in found):
                return cls(given, _from_sidecars(found, given, remote), remote)
            if len(found) > 1:
                other = next(url for url in found if unpack.by_name(storage.bare(url)) is None)
                what = f"{len(found)} files, and {display(other)} is no shard (.tar, .tar.gz, .tgz)"
                raise DataError(f"{display(given)} names {what}; name one folder, or shards only")
            url = found[0]
            manifest = url if storage.bare(url).endswith(".json") else storage.join(url, MANIFEST)
            raw = parse_row(read_indexes([manifest], url, remote)[0], manifest, url)
        folder = storage.parent(manifest)
        return cls(url, [_from_manifest(folder, manifest, url, entry) for entry in raw.get("shards", [])], remote)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that any sample has."""
        return tuple(sorted({field for shard in self.shards for field in shard.fields}))

    @property
    def left_out(self) -> LeftOut:
        """What the shards hold that belongs to no sample."""
        whole = LeftOut()
        for shard in self.shards:
            whole.merge(LeftOut(shard.left_out))
        return whole

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex over names, counts and checksums: equal for equal data, wherever it lies."""
        content = [(shard.name, shard.samples, shard.checksum) for shard in self.shards]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def bytes_of_samples(self) -> np.ndarray:
        """float64 [shards]: what is read for a sample of each, on average."""
        return np.array([shard.bytes / max(shard.samples, 1) for shard in self.shards])

    def shard_of(self, number: int) -> int:
        """Which shard holds sample `number`."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)} in {display(self.url)}")
        return bisect_right(self._starts, number) - 1

    def row(self, number: int) -> tuple[ShardInfo, Row]:
        """Shard and row of sample `number`. Raises DataError when the sidecar is missing or damaged."""
        shard = self.shard_of(number)
        return self.shards[shard], self.sidecar(shard).row(number - self._starts[shard])

    def shaped(self, number: int, fields: dict[str, bytes]) -> dict[str, bytes]:
        """The fields of sample `number` as they are used, of those that `row` names, verified."""
        return fields

    def entry(self, number: int) -> tuple[ShardInfo, str, dict[str, Member]]:
        """Shard, key and fields of sample `number`."""
        shard, row = self.row(number)
        return shard, row.key, row.members

    def sidecar(self, shard: int) -> Sidecar:
        """The parsed-on-demand sidecar of shard number `shard`."""
        return self._sidecars.get(shard)

    def prepare(self, numbers: Iterable[int]) -> None:
        """Load the sidecars of these samples, remote ones at the same time."""
        self._sidecars.load(self.shard_of(number) for number in numbers)

    def close(self) -> None:
        """End threads, close connections and files; a later read starts anew."""
        self.remote.close()
        self._sidecars.close()


def _from_sidecars(tars: Sequence[str], dataset: str, remote: Remote) -> list[ShardInfo]:
    for tar in tars:
        refuse_packing(tar)
    sidecars = read_indexes([storage.append(tar, SIDECAR) for tar in tars], dataset, remote)
    return [_from_sidecar(tar, data, dataset) for tar, data in zip(tars, sidecars, strict=True)]


def _from_sidecar(url: str, sidecar: bytes, dataset: str) -> ShardInfo:
    index_url = storage.append(url, SIDECAR)
    header = parse_row(sidecar[: sidecar.find(b"\n") + 1], index_url, dataset)
    return _shard(url, index_url, header | {"index_sha256": hashlib.sha256(sidecar).hexdigest()})


def _from_manifest(folder: str, manifest: str, dataset: str, entry: dict[str, Any]) -> ShardInfo:
    try:
        return _shard(storage.join(folder, entry["path"]), storage.join(folder, entry["name"] + SIDECAR), entry)
    except (KeyError, TypeError) as error:
        again = f"run `bigssl shards index {display(dataset)}`"
        raise DataError(f"index {display(manifest)}: a shard without {error}; {again}") from error


def _shard(url: str, index_url: str, entry: dict[str, Any]) -> ShardInfo:
    checksums = (entry["sha256"], entry["index_sha256"])
    return ShardInfo(
        entry["name"], url, index_url, entry["samples"], entry["bytes"], *checksums, tuple(entry["fields"]),
        entry.get("left_out", {}),
    )  # fmt: skip


def build_index(
    tars: Iterable[str | os.PathLike[str]], manifest_folder: str | os.PathLike[str], config: RemoteConfig | None = None
) -> DatasetIndex:
    """Reads every shard once and writes sidecars and manifest into `manifest_folder`; returns the index.

    Both may be URLs. Tars inside the folder are recorded relative to it. Raises DataError at the first damaged byte,
    at a shard without samples, and at two shards of one name. Files appear under their names only when complete.
    """
    folder = os.fspath(manifest_folder)
    entries: list[dict[str, Any]] = []
    with Remote(config) as remote:
        for path in tars:
            tar = os.fspath(path)
            entry = _index_shard(tar, folder, remote)
            if any(entry["name"] == other["name"] for other in entries):
                raise DataError(f"two shards are called {entry['name']!r} (the second is {display(tar)}); rename one")
            entries.append(entry)
        manifest = {"format": FORMAT, "samples": sum(entry["samples"] for entry in entries), "shards": entries}
        _write(folder, MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode(), remote)
    return DatasetIndex.load(folder, config)


def _write(folder: str, name: str, data: bytes, remote: Remote) -> None:
    if storage.is_local(folder):
        return write_atomic(storage.local_path(folder) / name, data)
    try:
        remote.write(storage.join(folder, name), data)
    except RemoteError as error:
        raise DataError(
            f"{display(folder)}: {name} cannot be written there ({error}); say with --out where the index goes"
        ) from None


def _index_shard(tar: str, folder: str, remote: Remote) -> dict[str, Any]:
    name, path = storage.name_of(tar), _relative(tar, folder)
    left_out = LeftOut()
    rows, checksum, size = scan(tar, remote, left_out)
    if not rows:
        raise damaged(tar, key=None, offset=0, cause="; ".join(["the shard has no samples", *left_out.lines()]))
    fields = sorted({field for row in rows for field in row.members})
    facts = {"name": name, "samples": len(rows), "bytes": size, "sha256": checksum, "fields": fields}
    facts |= {"left_out": left_out.as_json()} if left_out else {}
    lines = [json.dumps({"format": FORMAT, **facts}), *map(to_line, rows)]
    sidecar = ("\n".join(lines) + "\n").encode()
    _write(folder, name + SIDECAR, sidecar, remote)
    return {"path": path, "index_sha256": hashlib.sha256(sidecar).hexdigest(), **facts}


def _relative(tar: str, folder: str) -> str:
    if not storage.is_local(tar) or not storage.is_local(folder):
        name = storage.name_of(tar)
        return name if storage.join(folder, name) == tar else _without_credentials(tar)
    path, root = storage.local_path(tar).resolve(), storage.local_path(folder).resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _without_credentials(tar: str) -> str:
    """A manifest is copied and shared: nobody may find a password in it."""
    if not storage.is_local(tar) and display(tar) != tar:
        raise DataError(
            f"{display(tar)}: the manifest would record the credentials of this URL; put the index beside the shards, "
            "or give them by the client's own settings (environment, ~/.netrc, ~/.aws)"
        )
    return tar
