"""Datasets behind servers are the datasets on disk: same order, same bytes, each sample once, whatever breaks."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigssl.config.recipe import RemoteConfig
from bigssl.data.errors import DataError
from bigssl.data.loading.loader import make_loader
from bigssl.data.order.stream import SampleReader, Stream, read_in_order
from bigssl.data.remote.client import Remote
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex, build_index
from bigssl.data.shards.prefetch import Extent, ExtentReader
from bigssl.data.tools.verify import verify

COUNTS = (5, 1, 13, 2, 8, 8)
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on one core


def large(folder: Path, shards: int, samples: int) -> DatasetIndex:
    """Shards of some chunks each: `samples` of 300 to 500 kB."""
    rng, tars = np.random.default_rng(0), []
    folder.mkdir()
    for shard in range(shards):
        tars.append(folder / f"large-{shard}.tar")
        with tarfile.open(tars[-1], "w") as tar:
            for sample in range(samples):
                info = tarfile.TarInfo(f"{shard}-{sample}.bin")
                info.size = int(rng.integers(300_000, 500_000))
                tar.addfile(info, io.BytesIO(rng.bytes(info.size)))
    return build_index(tars, folder)


def as_it_is(sample: Sample, rng: np.random.Generator, more: object) -> dict[str, Any]:
    return {"bytes": hashlib.sha256(repr(sorted(sample.fields.items())).encode()).hexdigest()}


def ledger(index: DatasetIndex, *, size: int = 12, steps: int = 7, **options: Any) -> list[Any]:
    stream = Stream(index, seed=3, lanes=4, window=4, **options.pop("stream", {}))
    given = {"rank": 0, "world": 1, "accum": 1, "workers": 0, "start_step": 0, "stop_step": steps, **options}
    loader = make_loader({"": stream}, {"": size}, as_it_is, dict, seed=0, device_pin=False, **given)
    found = [(batch.keys[""], batch.data[""]["bytes"], batch.errors) for batch in loader]
    stream.close()
    return found


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_http_is_like_local(dataset, serve, quick, cache: bool, compress: bool) -> None:
    local = dataset(COUNTS, compress=compress, pictures=True)
    server = serve(Path(local.url))
    before = set(threading.enumerate())
    index = DatasetIndex.load(server.url + "/", quick(cache=cache))
    assert index.fingerprint == local.fingerprint
    expected = ledger(local)
    server.set(faults=[{"kind": kind, "status": 503, "path": ".tar" + ".gz" * compress}
                       for kind in ("cut", "status", "short", "long", "flip", "nolength")])  # fmt: skip
    assert ledger(index) == expected
    times = Counter(key for batch, _, _ in expected for key in batch)  # 84 samples: two epochs of 37, and 10
    assert sorted(times) == [f"s-{i:05d}" for i in range(37)] and Counter(times.values()) == {2: 27, 3: 10}
    assert set(threading.enumerate()) <= before


def test_worlds_and_workers_and_resume(dataset, serve, quick) -> None:
    local = dataset(COUNTS)
    server = serve(Path(local.url))
    index = DatasetIndex.load(f"{server.url}/index.json", quick(cache=True))
    expected = ledger(local)
    for world, workers in ((1, 2), (2, 0), (3, 1)):
        ranks = [ledger(index, world=world, rank=rank, workers=workers) for rank in range(world)]
        joined = [[key for part in parts for key in part[0]] for parts in zip(*ranks, strict=True)]
        assert joined == [batch for batch, _, _ in expected]
    assert ledger(index, start_step=4, stop_step=7) == expected[4:]


def test_a_micro_batch_is_fetched_at_once_and_the_next_one_ahead(dataset, serve, quick) -> None:
    local = dataset(COUNTS)
    server = serve(Path(local.url))
    server.set(delay=0.05)
    stream = Stream(DatasetIndex.load(server.url, quick(gap=0)), seed=0, lanes=6, window=4)
    places = [stream.micro_batch(step, 12, 0, 1, 0, 1) for step in range(3)]
    stream.announce(places[0], places[1])
    here = Stream(local, seed=0, lanes=6, window=4)
    assert [stream.read(p).key for p in places[0]] == [here.read(p).key for p in places[0]]
    assert server.log()["most"] > 4
    stream.announce(places[1], places[2])
    for place in places[1]:
        stream.read(place)
    end = time.monotonic() + 20
    while len(server.ranges()) < 36:  # those of places[2] come without being read
        assert time.monotonic() < end
        time.sleep(0.02)
    for place in places[2]:
        stream.read(place)
    assert len(server.ranges()) == 36
    stream.close()


def test_neighbours_are_one_request(dataset, serve, quick) -> None:
    local = dataset((40,))
    server = serve(Path(local.url))
    index = DatasetIndex.load(server.url, quick())
    reader = SampleReader(index)
    reader.announce(range(30), range(30, 40))
    assert [reader.read(i).key for i in range(40)] == [f"s-{i:05d}" for i in range(40)]
    assert len(server.ranges()) == 2
    reader.close()
    apart = SampleReader(DatasetIndex.load(server.url, quick(gap=0)))
    apart.announce([0, 1, 20], [21])  # 0 and 1 touch up to the padding of a tar block
    for number in (0, 1, 20, 21):
        apart.read(number)
    assert len(server.ranges()) == 2 + 4
    apart.close()


def test_reading_ahead_is_bounded(dataset, serve, quick, monkeypatch: pytest.MonkeyPatch) -> None:
    index = dataset((40,))
    server = serve(Path(index.url))
    reader = SampleReader(DatasetIndex.load(server.url, quick(gap=0, ahead_mb=1)))
    row = index.row(0)[1]
    monkeypatch.setattr(reader._extents, "_budget", 5 * row.length)
    reader.announce(range(20), range(20, 40))
    for number in range(40):
        assert reader._extents._flying <= 5 * row.length
        assert reader.read(number).key == f"s-{number:05d}"
    assert reader._extents._flying == 0
    assert len(server.ranges()) == 40
    reader.close()


def test_chunks_are_fetched_once_by_all_processes(serve, quick, tmp_path: Path) -> None:
    """Two ranks of two workers each, epoch after epoch: every chunk of the dataset crosses the wire once."""
    local = large(tmp_path / "large", 3, 6)
    server = serve(Path(local.url))
    index = DatasetIndex.load(server.url, quick(cache=True))
    for rank in range(2):
        assert len(ledger(index, world=2, rank=rank, workers=2, steps=6)) == 6
    chunks = [(a, min(a + (1 << 20), shard.bytes)) for shard in local.shards for a in range(0, shard.bytes, 1 << 20)]
    assert sorted(server.ranges()) == sorted(chunks)
    assert len(chunks) > 6
    sidecars = [path for path, _ in server.log()["requests"] if path.endswith(".idx")]
    assert sorted(sidecars) == [f"/{shard.name}.idx" for shard in local.shards]


def test_no_node_reads_the_whole_dataset(serve, quick, tmp_path: Path) -> None:
    """Two nodes, each with its cache: an epoch costs each about its half, in whole chunks, and what is read ahead of
    the next one."""
    local = large(tmp_path / "large", 12, 8)
    chunks = sum(-(-shard.bytes // (1 << 20)) for shard in local.shards)
    keys = []
    for rank in range(2):
        server = serve(Path(local.url))
        config = quick(cache=True).model_copy(update={"cache": str(tmp_path / f"node-{rank}")})
        batches = ledger(DatasetIndex.load(server.url, config), world=2, rank=rank, size=8, steps=12)
        keys += [key for part in batches for key in part[0]]
        paths = [path for path, _ in server.log()["requests"] if path.endswith(".tar")]
        read = list(zip(paths, server.ranges(), strict=True))
        assert len(set(read)) == len(read) <= 0.7 * chunks
    assert sorted(keys) == sorted(sample.key for sample in read_in_order(local))


def test_a_server_without_ranges_needs_a_cache(serve, quick, tmp_path: Path) -> None:
    local = large(tmp_path / "large", 3, 8)
    server = serve(Path(local.url))
    server.set(ranges=False)
    with pytest.raises(DataError, match=r"ignores byte ranges.*data\.remote\.cache=FOLDER.*bigssl shards verify"):
        ledger(DatasetIndex.load(server.url, quick()))
    assert ledger(DatasetIndex.load(server.url, quick(cache=True))) == ledger(local)
    whole = [path for path, asked in server.log()["requests"] if path.endswith(".tar") and asked is None]
    assert sorted(whole) == [f"/{shard.name}" for shard in local.shards]


def test_a_shard_that_changed_under_the_run_is_named(dataset, serve, quick) -> None:
    local = dataset((9, 9))
    server = serve(Path(local.url))
    index = DatasetIndex.load(server.url, quick())
    reader = SampleReader(index)
    assert reader.read(3).key == "s-00003"
    path = Path(local.shards[0].url)
    data = bytearray(path.read_bytes())
    data[local.row(4)[1].members["txt"].offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-000\.tar, sample 's-00004', byte \d+: .*differs from its checksum: .*"):
        reader.read(4)
    path.write_bytes(data + b"more")
    sizes = f"it has {len(data) + 4} bytes now, {len(data)} then"
    with pytest.raises(DataError, match=rf"shard-000\.tar, sample 's-00005', byte \d+: .*{sizes}.*shards verify"):
        reader.read(5)
    path.unlink()
    with pytest.raises(DataError, match=r"sample 's-00006', byte \d+: cannot be read \(HTTP 404"):
        reader.read(6)
    assert reader.read(12).key == "s-00012"
    reader.close()


def test_a_flipped_byte_on_the_way_is_fetched_again(dataset, serve, quick) -> None:
    local = dataset((9,))
    server = serve(Path(local.url))
    for cache in (False, True):
        index = DatasetIndex.load(server.url, quick(cache=cache))
        server.fault("flip", path=".tar")
        assert [s.fields for s in read_in_order(index)] == [s.fields for s in read_in_order(local)]


def test_bad_samples_are_skipped_as_locally(dataset, serve, quick) -> None:
    local = dataset(COUNTS)
    expected_shard = local.shards[2]
    path = Path(expected_shard.url)
    data = bytearray(path.read_bytes())
    data[local.row(9)[1].members["txt"].offset] ^= 1
    path.write_bytes(data)
    server = serve(Path(local.url))
    here = ledger(local, stream={"on_error": "skip"})
    there = ledger(DatasetIndex.load(server.url, quick()), stream={"on_error": "skip"})
    assert [keys for keys, _, _ in there] == [keys for keys, _, _ in here]
    assert sum(len(errors) for _, _, errors in there) == sum(len(errors) for _, _, errors in here) > 0


def test_a_missing_sidecar_and_manifest_name_their_command(dataset, serve, quick) -> None:
    local = dataset((3, 3))
    server = serve(Path(local.url))
    index = DatasetIndex.load(server.url, quick())
    os.remove(local.shards[1].index_url)
    with pytest.raises(DataError, match=r"no index at http://.*001\.tar\.idx \(HTTP 404.*bigssl shards index http"):
        list(read_in_order(index))
    (Path(local.url) / "index.json").unlink()
    with pytest.raises(DataError, match=r"no index at .*index\.json.*run `bigssl shards index http://127"):
        DatasetIndex.load(server.url, quick())
    server.set(faults=[{"kind": "status", "status": 503, "times": 99}])
    with pytest.raises(DataError, match=r"index http.*shard-000\.tar\.idx cannot be read \(HTTP 503.*4 attempts"):
        DatasetIndex.load(f"{server.url}/shard-00{{0..0}}.tar", quick())


def test_brace_patterns_with_login_and_token(dataset, serve, quick, capfd: pytest.CaptureFixture[str]) -> None:
    local = dataset((3, 3))
    server = serve(Path(local.url))
    server.set(login="user:s3cret", token="t0ken")
    url = f"http://user:s3cret@{server.url.removeprefix('http://')}/shard-{{000..001}}.tar?token=t0ken"
    index = DatasetIndex.load(url, quick())
    assert [s.key for s in read_in_order(index)] == [f"s-{i:05d}" for i in range(6)]
    assert [shard.name for shard in index.shards] == ["shard-000.tar", "shard-001.tar"]
    server.set(token="other")
    with pytest.raises(DataError) as failure:
        SampleReader(index).read(0)
    assert "s3cret" not in str(failure.value) and "t0ken" not in str(failure.value)
    assert "sample 's-00000', byte 0" in str(failure.value) and "HTTP 403" in str(failure.value)
    index.close()
    assert "s3cret" not in "".join(capfd.readouterr())


def test_nothing_runs_in_a_process_that_will_fork(dataset, serve, quick) -> None:
    server = serve(Path(dataset((9, 9)).url))
    before = set(threading.enumerate())  # some of them, of earlier tests, may be about to end
    index = DatasetIndex.load(server.url, quick())
    stream = Stream(index, seed=0)
    assert next(read_in_order(index, 1)).key == "s-00000"
    assert not set(threading.enumerate()) - before
    stream.read(0)
    assert set(threading.enumerate()) - before
    options = {"seed": 0, "rank": 0, "world": 1, "accum": 1, "start_step": 0, "stop_step": 2, "device_pin": False}
    loader = make_loader({"": stream}, {"": 4}, as_it_is, dict, workers=1, **options)
    seen: list[set[threading.Thread]] = []
    fork = os.fork

    def watched() -> int:
        seen.append(set(threading.enumerate()) - before)
        return fork()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fork", watched)
        assert len(list(loader)) == 2
    assert seen == [set()]


SCRIPT = """
import sys
from bigssl.config.recipe import RemoteConfig
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.loading.loader import make_loader
from bigssl.data.order.stream import Stream
stream = Stream(DatasetIndex.load(sys.argv[1], RemoteConfig(cache=sys.argv[2] or None)), seed=0)
loader = make_loader({"": stream}, {"": 4}, lambda *_: {"n": 1}, dict, seed=0, rank=0, world=1, accum=1, workers=2,
                     start_step=0, stop_step=10**6, device_pin=False)
for batch in loader:
    print(batch.keys[""][0], flush=True)
"""


@pytest.mark.parametrize("cache", [False, True])
def test_an_interrupt_while_the_server_hangs_leaves_no_process(dataset, serve, tmp_path: Path, cache: bool) -> None:
    server = serve(Path(dataset((9, 9)).url))
    command = [sys.executable, "-c", SCRIPT, server.url, str(tmp_path / "cache") if cache else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        server.set(faults=[{"kind": "slow", "times": 99}])
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_verify_reads_what_is_behind_a_server(dataset, serve) -> None:
    local = dataset((4, 4))
    server = serve(Path(local.url))
    assert list(verify(server.url)) == []
    Path(local.shards[1].url).unlink()
    assert [(f.shard, "missing" in f.cause) for f in verify(server.url)] == [("shard-001.tar", True)]


def test_readers_of_one_index_may_close_it(dataset, serve, quick) -> None:
    local = dataset((9, 9))
    server = serve(Path(local.url))
    server.set(delay=0.05)
    for cache in (False, True):
        index = DatasetIndex.load(server.url, quick(cache=cache))
        stream = Stream(index, seed=0)
        stream.announce(range(10), range(10, 18))
        index.close()
        assert [stream.read(p).key for p in range(18)] == [Stream(local, seed=0).read(p).key for p in range(18)]
        stream.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_announcement_gives_the_bytes_of_the_file(data: st.DataObject, shared: Any) -> None:
    """Overlapping, touching, repeated, unannounced and never read extents, under any gap and budget."""
    content, index = shared
    draw = data.draw
    config = RemoteConfig(gap=draw(st.sampled_from([0, 100, 5000])), retries=0)
    with Remote(config) as remote:
        reader = ExtentReader(remote)
        reader._budget = draw(st.sampled_from([1, 3000, 10**6]))
        place = st.integers(0, len(content) - 1)
        extents = st.lists(st.tuples(place, st.integers(1, 4000)), max_size=12)
        later: list[tuple[int, int]] = []
        for _ in range(3):
            now, later = later + draw(extents), draw(extents)
            parts = [[Extent(index.shards[0], a, min(a + n, len(content))) for a, n in part] for part in (now, later)]
            reader.announce(*parts)
            for extent in draw(st.permutations(parts[0])):
                found = reader.read(extent.shard, extent.start, extent.stop - extent.start)
                assert found == content[extent.start : extent.stop]
        reader.close()
        assert reader._flying == 0


@pytest.fixture
def shared(dataset, serve) -> tuple[bytes, DatasetIndex]:
    local = dataset((30,))
    server = serve(Path(local.url))
    return Path(local.shards[0].url).read_bytes(), DatasetIndex.load(server.url)


def test_a_cache_that_is_too_small_says_so(
    serve, quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    local = large(tmp_path / "large", 2, 8)
    server = serve(Path(local.url))
    monkeypatch.setattr("bigssl.data.remote.chunks._TOO_OFTEN", 4)
    monkeypatch.setattr("bigssl.data.remote.cache._OPEN", 1)
    config = quick(cache=True, cache_gb=0.0043)
    reader, here = SampleReader(DatasetIndex.load(server.url, config)), SampleReader(local)
    for number in [*range(16)] * 3:
        assert reader.read(number).fields == here.read(number).fields
    reader.close()
    assert capfd.readouterr().err.count("4 chunks were fetched again after they made room; raise") == 1
    server.set(ranges=False)
    for path in (tmp_path / "cache").glob("??/*"):
        path.unlink()
    big = large(tmp_path / "big", 1, 16)
    server = serve(Path(big.url))
    server.set(ranges=False)
    with pytest.raises(DataError, match=r"ignores byte ranges and .* of \d+ bytes does not fit into the cache of 43"):
        SampleReader(DatasetIndex.load(server.url, config)).read(0)


def test_gs_by_a_stand_in(dataset, quick, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server of that protocol here: a file system registered under its name shows that its URLs are routed."""
    from fsspec.implementations.memory import MemoryFileSystem

    class Bucket(MemoryFileSystem):
        protocol = ("gs",)
        store: dict[str, Any] = {}

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("gs://").strip("/")

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gs", Bucket)
    local = dataset((3, 2))
    bucket = Bucket()
    for path in Path(local.url).iterdir():
        bucket.pipe(f"/bucket/{path.name}", path.read_bytes())
    index = DatasetIndex.load("gs://bucket", RemoteConfig())
    assert [s.fields for s in read_in_order(index)] == [s.fields for s in read_in_order(local)]
