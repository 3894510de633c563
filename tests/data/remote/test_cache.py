"""The disk cache: bounded, least recently used first, right after kills, damage and full disks, for many processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from threading import Event, Thread, current_thread
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from bigssl.data.errors import DataError
from bigssl.data.order.stream import SampleReader, read_in_order
from bigssl.data.remote import cache as cache_module
from bigssl.data.remote.cache import DiskCache, entry_name
from bigssl.data.remote.chunks import Chunks, open_cache
from bigssl.data.remote.client import Remote
from bigssl.data.shards.index import DatasetIndex

FORK = multiprocessing.get_context("fork")


def entry(number: int) -> str:
    return entry_name("s3://b/x.tar", "sum", str(number))


def content(number: int, size: int = 1000) -> bytes:
    return np.random.default_rng(number).bytes(size)


def size_on_disk(cache: DiskCache) -> int:
    found = 0
    for path in cache.folder.glob("??/*"):
        try:
            found += path.stat().st_size
        except FileNotFoundError:
            continue
    return found


def test_what_is_stored_is_read(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10**6)
    assert cache.read(entry(0), 0, 1) is None
    assert not cache.has(entry(0))
    cache.store(entry(0), content(0))
    assert cache.has(entry(0))
    assert cache.read(entry(0), 10, 20) == content(0)[10:30]
    assert DiskCache(tmp_path, 10**6).read_whole(entry(0)) == content(0)
    assert size_on_disk(cache) == 1020
    cache.drop(entry(0))
    assert cache.read(entry(0), 10, 20) is None


def test_names_tell_urls_versions_and_parts_apart() -> None:
    names = {entry_name(*parts) for parts in (("s3://a/x.tar", "1", "0"), ("s3://b/x.tar", "1", "0"),
                                              ("s3://a/x.tar", "2", "0"), ("s3://a/x.tar", "1", "1"))}  # fmt: skip
    assert len(names) == 4


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache, other = DiskCache(tmp_path, 10 * 1020), DiskCache(tmp_path, 10 * 1020)
    for number in range(10):
        cache.store(entry(number), content(number))
    for number in (0, 3, 1):
        assert other.read(entry(number), 0, 5) == content(number)[:5]  # of another process: the order is common
    present = set(range(10))
    for number, gone in zip(range(10, 19), [2, 4, 5, 6, 7, 8, 9, 0, 3], strict=True):
        cache.store(entry(number), content(number))
        present = present - {gone} | {number}
        assert {n for n in range(19) if (tmp_path / entry(n)).exists()} == present
        assert size_on_disk(cache) <= 10 * 1020


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "header"])
def test_a_damaged_entry_is_none(tmp_path: Path, damage: str) -> None:
    cache = DiskCache(tmp_path, 10**6)
    cache.store(entry(0), content(0))
    data = bytearray((tmp_path / entry(0)).read_bytes())
    data = {"flip": data[:500] + bytes([data[500] ^ 1]) + data[501:], "cut": data[:500], "empty": data[:0],
            "longer": data + b"x", "header": b"X" + data[1:]}[damage]  # fmt: skip
    (tmp_path / entry(0)).write_bytes(data)
    assert cache.read(entry(0), 0, 10) is None
    assert not (tmp_path / entry(0)).exists()
    cache.store(entry(0), content(0))
    (tmp_path / entry(0)).write_bytes(data)
    assert DiskCache(tmp_path, 10**6).read_whole(entry(0)) is None


def hammer(folder: Path, seed: int, queue: Any) -> None:
    cache, rng, wrong = DiskCache(folder, 12_000), np.random.default_rng(seed), 0
    for _ in range(150):
        number = int(rng.integers(20))
        data = cache.read(entry(number), 100, 50)
        if data is None:
            cache.store(entry(number), content(number))
        elif data != content(number)[100:150]:
            wrong += 1
    queue.put(wrong)


def test_processes_share_it_and_stay_under_the_limit(tmp_path: Path) -> None:
    queue = FORK.Queue()
    processes = [FORK.Process(target=hammer, args=(tmp_path, seed, queue)) for seed in range(4)]
    for process in processes:
        process.start()
    watched = DiskCache(tmp_path, 12_000)
    while any(process.is_alive() for process in processes):
        with FileLock(tmp_path / "locks" / "size"):  # else it could meet one file under both of its names
            assert size_on_disk(watched) <= 12_000
        time.sleep(0.001)
    assert [queue.get() for _ in processes] == [0] * 4
    assert all(process.exitcode == 0 for process in processes)


def test_a_file_that_gets_its_name_while_bytes_are_counted_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is listed as a part; when its size is asked for, that is gone."""
    cache, other, listed, written = DiskCache(tmp_path, 3000), DiskCache(tmp_path, 3000), Event(), Event()
    cache.store(entry(0), content(0))

    def touch(file: Path | int) -> None:
        if current_thread() is writer:
            written.set()
            assert listed.wait(10)
        real_touch(file)

    def glob(folder: Path, pattern: str) -> list[Path]:
        found = list(real_glob(folder, pattern))
        listed.set()
        writer.join(0.5)
        return found

    real_touch, real_glob = cache_module._touch, Path.glob
    writer = Thread(target=other.store, args=(entry(1), content(1)))
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_touch", touch)
        writer.start()
        assert written.wait(10)
        (tmp_path / "locks" / "bytes").unlink()  # so that it is counted
        patch.setattr(Path, "glob", glob)
        cache.store(entry(2), content(2))
        writer.join(10)
    assert not writer.is_alive() and cache.has(entry(1)) and cache.has(entry(2))
    assert size_on_disk(cache) == int((tmp_path / "locks" / "bytes").read_text()) == 2 * 1020


def write_for_ever(folder: Path, ready: Any) -> None:
    cache, number = DiskCache(folder, 10**7), 0
    while True:
        number += 1
        cache.store(entry(number % 5), content(number % 5, 10**6))
        ready.set()


def test_a_kill_in_the_middle_of_a_write_leaves_nothing_wrong(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        ready = FORK.Event()
        process = FORK.Process(target=write_for_ever, args=(tmp_path, ready))
        process.start()
        assert ready.wait(30)
        time.sleep(float(rng.uniform(0, 0.01)))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        cache = DiskCache(tmp_path, 10**7)
        for number in range(5):
            assert cache.read_whole(entry(number)) in (None, content(number, 10**6))
        cache.store(entry(7), content(7))  # no lock is left behind
        assert size_on_disk(cache) <= 10**7
    for part in tmp_path.glob("??/*.part"):
        os.utime(part, (1, 1))  # as if written long ago
    for number in range(8, 20):
        cache.store(entry(number), content(number, 10**6))
    assert not list(tmp_path.glob("??/*.part"))


def test_parts_of_living_writers_stay(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 5000)
    cache.store(entry(0), content(0))
    part = (tmp_path / entry(0)).with_name("abc.part")
    part.write_bytes(b"x" * 1000)
    (tmp_path / "locks" / "bytes").unlink()  # so that it is counted
    for number in range(1, 9):
        cache.store(entry(number), content(number))
        assert size_on_disk(cache) <= 5000
    assert part.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.remote\.cache: folder .*file/cache cannot be written to"):
        DiskCache(tmp_path / "file" / "cache", 10**6)


def test_a_cache_smaller_than_some_chunks_is_refused(tmp_path: Path, quick) -> None:
    with pytest.raises(DataError, match=r"cache_gb: value 0\.001, allowed is 4 chunks of 1 MiB or more, 0\.004"):
        open_cache(Remote(quick(cache=True, cache_gb=0.001)))


def test_a_full_disk_is_said_once_and_reading_goes_on(
    dataset, serve, quick, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    local = dataset((20, 20))
    server = serve(Path(local.url))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    reader = SampleReader(DatasetIndex.load(server.url, quick(cache=True)))
    assert reader.read(0).key == "s-00000"
    monkeypatch.setattr(DiskCache, "_reserve", full)
    assert [reader.read(n).key for n in range(40)] == [f"s-{n:05d}" for n in range(40)]
    (said,) = capfd.readouterr().err.splitlines()
    assert re.search(r"cannot be written \(disk full: .*, needs .*, has .*\); this process reads on", said)
    assert len([r for r in server.ranges() if r[1] - r[0] > 10_000]) == 2  # then no more chunks, but samples
    reader.close()


def test_damaged_chunks_are_fetched_again(dataset, serve, quick, tmp_path: Path) -> None:
    local = dataset((9,))
    server = serve(Path(local.url))
    config = quick(cache=True)
    for _ in range(2):
        index = DatasetIndex.load(server.url, config)
        assert [s.fields for s in read_in_order(index)] == [s.fields for s in read_in_order(local)]
        for path in (tmp_path / "cache").glob("??/*"):
            path.write_bytes(path.read_bytes()[:-700] + b"?" * 700)
    assert len(server.ranges()) == 2


def test_one_basename_behind_two_urls(dataset, serve, quick, tmp_path: Path) -> None:
    servers = [serve(Path(dataset((n,)).url)) for n in (3, 5)]
    for server, count in zip(servers * 2, (3, 5) * 2, strict=True):
        index = DatasetIndex.load(server.url, quick(cache=True))
        assert index.shards[0].name == "shard-000.tar"
        assert [s.key for s in read_in_order(index)] == [f"s-{i:05d}" for i in range(count)]


def test_chunk_borders(serve, quick, tmp_path: Path, dataset) -> None:
    """Ranges inside, across and at the ends of chunks, against the file itself."""
    local = dataset((30,))
    shard = local.shards[0]
    data = Path(shard.url).read_bytes()
    server = serve(Path(local.url))
    config = quick(cache=True)
    with Remote(config) as remote:
        chunks = Chunks(remote, DiskCache(tmp_path / "c", 10**7), 4096)
        there = DatasetIndex.load(server.url, config).shards[0]
        touched = set()
        for start in (0, 1, 4095, 4096, 4097, 10_000, len(data) - 1):
            for length in (1, 4095, 4096, 4097, 9000):
                stop = min(start + length, len(data))
                assert chunks.read(there, start, stop) == data[start:stop]
                touched |= {place // 4096 for place in range(start, stop)}
        chunks.close()
    assert sorted(server.ranges()) == [(n * 4096, min(n * 4096 + 4096, len(data))) for n in sorted(touched)]
