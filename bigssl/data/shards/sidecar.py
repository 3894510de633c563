"""One line of JSON per sample: where its bytes lie. The lines stay raw, on disk where they can, and are parsed when a
sample is asked for, so that the index of a worker takes some bytes per sample whatever a line is long."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bigssl.config.places import seen_from
from bigssl.data.errors import DataError, display
from bigssl.data.remote.cache import DiskCache, entry_name
from bigssl.data.remote.client import Remote, RemoteError
from bigssl.data.shards import storage

SIDECAR = ".idx"
FORMAT = "bigssl-index-1"
MEMORY = 128 << 20  # bytes of sidecars per process
_TOGETHER = 16  # sidecars that are whole in memory at one time


class Member(NamedTuple):
    """One field of a sample: byte offset in the (uncompressed) tar, length in bytes, CRC-32 of the content; of a long
    .npy in a bare tar, those of its parts (see `blocks`)."""

    offset: int
    length: int
    crc32: int
    parts: str = ""


@dataclass(frozen=True)
class ShardInfo:
    """One shard. `bytes` is the size of the file, `checksum` its SHA-256, `index_checksum` that of its sidecar,
    `left_out` what it holds that belongs to no sample (`leftout.LeftOut.as_json`)."""

    name: str
    url: str
    index_url: str
    samples: int
    bytes: int
    checksum: str
    index_checksum: str
    fields: tuple[str, ...]
    left_out: Mapping[str, Any] = field(default_factory=dict, compare=False)


class Row(NamedTuple):
    """One sample. Read `length` bytes of the file at `start`; the first of them is byte `origin` of the tar."""

    key: str
    start: int
    length: int
    origin: int
    members: dict[str, Member]


_decode = json.JSONDecoder().raw_decode


class Sidecar:
    """The verified lines of one sidecar: their offsets in memory, the lines themselves where `read` finds them.

    read: (start, length) -> bytes of the sidecar. cost: bytes of memory.
    """

    def __init__(self, info: ShardInfo, dataset: str, data: bytes, read: Callable[[int, int], bytes] | None) -> None:
        self._info, self._dataset = info, dataset
        header = parse_row(data[: data.find(b"\n") + 1], info.index_url, dataset)
        if hashlib.sha256(data).hexdigest() != info.index_checksum:
            raise self._stale("its checksum differs from the manifest's")
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n"))
        if len(ends) != info.samples + 1 or header["sha256"] != info.checksum:
            raise self._stale("it belongs to another version of the shard")
        self._ends = ends.astype(np.uint32 if len(data) < 1 << 32 else np.uint64)
        self._read = read or (lambda start, length: data[start : start + length])
        self.cost = self._ends.nbytes + (0 if read else len(data))

    def _stale(self, cause: str) -> DataError:
        where, again = display(self._info.index_url), display(self._dataset)
        return DataError(
            f"index {where}: {cause}; run `bigssl shards verify {again}`, then `bigssl shards index {again}`"
        )

    def row(self, number: int) -> Row:
        """Row `number` of the shard."""
        begin, end = int(self._ends[number]) + 1, int(self._ends[number + 1])
        line = self._read(begin, end - begin)
        try:
            (key, start, length, origin, fields), _ = _decode(line.decode())  # twice as fast as json.loads of bytes
        except ValueError:
            raise self._stale("it changed while it was in use") from None
        return Row(key, start, length, origin, {name: Member(*values) for name, values in fields.items()})


class Sidecars:
    """The sidecars of a dataset, loaded when first asked for, the least recently used dropped beyond `limit` bytes.

    Half of that may be taken by whole sidecars, which are the fastest to read. Beyond it, only the offsets of its lines
    are kept of a local one (4 bytes per sample) and of a remote one in a cache on disk.
    """

    def __init__(self, dataset: str, shards: Sequence[ShardInfo], remote: Remote, limit: int = MEMORY) -> None:
        self._dataset, self._shards, self._remote, self._limit = dataset, shards, remote, limit
        self._loaded: OrderedDict[int, Sidecar] = OrderedDict()
        self._files = storage.RangeReader()
        self._disk: DiskCache | None = None
        self.memory = 0

    def get(self, shard: int) -> Sidecar:
        """The sidecar of shard number `shard`. Raises DataError when it is missing, damaged or of another version."""
        found = self._loaded.get(shard)
        if found is None:
            self.load([shard])
            found = self._loaded[shard]
        self._loaded.move_to_end(shard)
        return found

    def load(self, shards: Iterable[int]) -> None:
        """Load those of `shards` that are not there, remote ones at the same time."""
        wanted = dict.fromkeys(shards)
        for shard in wanted.keys() & self._loaded.keys():
            self._loaded.move_to_end(shard)
        missing = [shard for shard in wanted if shard not in self._loaded]
        for begin in range(0, len(missing), _TOGETHER):
            self._load(missing[begin : begin + _TOGETHER])
        while self.memory > self._limit and len(self._loaded) > len(wanted):
            self.memory -= self._loaded.popitem(last=False)[1].cost

    def _load(self, shards: Sequence[int]) -> None:
        infos = [self._shards[shard] for shard in shards]
        versions = [self._version(info) for info in infos]  # before the content: a change in between is noticed
        for shard, info, version, data in zip(shards, infos, versions, self._contents(infos), strict=True):
            whole = self.memory + len(data) <= self._limit // 2
            self._loaded[shard] = Sidecar(info, self._dataset, data, None if whole else self._reader(info, version))
            self.memory += self._loaded[shard].cost

    def close(self) -> None:
        """Close files; a later read opens them again."""
        self._files.close()
        if self._disk is not None:
            self._disk.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": OrderedDict(), "_disk": None, "memory": 0}

    def _contents(self, infos: Sequence[ShardInfo]) -> list[bytes]:
        found = {info.name: self._kept(info) for info in infos}
        missing = [info for info in infos if found[info.name] is None]
        disks = [disk for info in missing if (disk := self._cache(info)) is not None]
        with disks[0].lock("", "sidecars") if disks else nullcontext():  # one process of a machine fetches for all
            if disks:
                found |= {info.name: self._kept(info) for info in missing}
                missing = [info for info in missing if found[info.name] is None]
            fetched = read_indexes([info.index_url for info in missing], self._dataset, self._remote)
            for info, data in zip(missing, fetched, strict=True):
                found[info.name] = data
                self._keep(info, data)
        return [data for data in found.values() if data is not None]

    def _cache(self, info: ShardInfo) -> DiskCache | None:
        """The cache on disk, where there is one and the sidecar is remote."""
        config = self._remote.config
        if config.cache is None or storage.is_local(info.index_url):
            return None
        self._disk = self._disk or DiskCache(config.cache, int(config.cache_gb * 1e9))
        return self._disk

    def _kept(self, info: ShardInfo) -> bytes | None:
        disk = self._cache(info)
        return None if disk is None else disk.read_whole(_entry(info))

    def _keep(self, info: ShardInfo, data: bytes) -> None:
        disk = self._cache(info)
        if disk is not None:
            with suppress(OSError):  # a full disk: it stays in memory, and the reader of shards says why
                disk.store(_entry(info), data)

    def _version(self, info: ShardInfo) -> tuple[int, int, int]:
        try:
            return self._files.version(info.index_url) if storage.is_local(info.index_url) else (0, 0, 0)
        except OSError:  # reading it says what is wrong
            return (0, 0, 0)

    def _reader(self, info: ShardInfo, version: tuple[int, int, int]) -> Callable[[int, int], bytes] | None:
        if storage.is_local(info.index_url):
            return lambda start, length: self._from_file(info, version, start, length)
        disk = self._cache(info)
        if disk is None or not disk.has(_entry(info)):
            return None
        return lambda start, length: self._from_disk(disk, info, start, length)

    def _from_file(self, info: ShardInfo, version: tuple[int, int, int], start: int, length: int) -> bytes:
        if self._files.version(info.index_url) != version:
            return b""  # not a line: the reader says that it changed
        return self._files.read(info.index_url, start, length)

    def _from_disk(self, disk: DiskCache, info: ShardInfo, start: int, length: int) -> bytes:
        line = disk.read(_entry(info), start, length)
        return self._contents([info])[0][start : start + length] if line is None else line  # it was evicted


def _entry(info: ShardInfo) -> str:
    return entry_name(info.index_url, info.index_checksum, "sidecar")


def read_indexes(urls: Sequence[str], dataset: str, remote: Remote) -> list[bytes]:
    """The bytes of index files of `dataset`, remote ones fetched at the same time. Raises DataError naming the command
    that builds them."""
    try:
        behind = [url for url in urls if not storage.is_local(url)]
        fetched = iter(remote.read_all(behind) if behind else [])
        return [_local_index(url, dataset) if storage.is_local(url) else next(fetched) for url in urls]
    except RemoteError as error:
        where = display(error.url)
        cause = f"no index at {where}" if error.missing else f"index {where} cannot be read"
        raise _no_index(dataset, f"{cause} ({error})") from None


def _local_index(url: str, dataset: str) -> bytes:
    path = storage.local_path(url)
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and not path.parent.exists():
            raise DataError(f"dataset {display(dataset)}: no such file or folder{seen_from(path)}") from error
        if parts := sorted(str(each.parent) for each in path.parent.glob(f"*/{path.name}")):
            raise DataError(f"dataset {display(dataset)}: no index, but it has parts with one; allowed: "
                            f"{', '.join(parts)}") from error  # fmt: skip
        raise _no_index(dataset, f"no index at {display(url)} ({type(error).__name__})") from error


def _no_index(dataset: str, cause: str) -> DataError:
    return DataError(f"dataset {display(dataset)}: {cause}; run `bigssl shards index {display(dataset)}`")


def parse_row(data: bytes, url: str, dataset: str) -> dict[str, Any]:
    """The JSON object of a manifest, or of a sidecar's first line. Raises DataError."""
    try:
        parsed = json.loads(data)
        if parsed["format"] != FORMAT:
            raise ValueError(f"format is {parsed['format']!r}, this version reads {FORMAT!r}")
    except (ValueError, KeyError, TypeError) as error:
        again = f"run `bigssl shards index {display(dataset)}`"
        raise DataError(f"index {display(url)}: not an index ({error}); {again}") from error
    return dict(parsed)


def to_line(row: Row) -> str:
    """The line of `row` in a sidecar."""
    members = {field: list(m if m.parts else m[:3]) for field, m in row.members.items()}
    return json.dumps([row.key, row.start, row.length, row.origin, members], separators=(",", ":"), ensure_ascii=False)
