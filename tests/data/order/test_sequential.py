"""Sources without an index: one order, each sample once, and every way to end early is an error."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.errors import DataError, display
from bigssl.data.loading.loader import make_loader
from bigssl.data.loading.skipped import Tally
from bigssl.data.order.sequential import SequentialIndex, SequentialStream, samples_of
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex

COUNTS = (5, 1, 13, 2, 8, 8)
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # on two cores


def write_tar(path: Path, keys: list[str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for field in ("txt", "cls"):
                info = tarfile.TarInfo(f"{key}.{field}")
                data = f"{field} of {key}".encode() * (1 + len(key))
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """A folder of tars of `COUNTS` samples, without an index."""
    first = 0
    for number, count in enumerate(COUNTS):
        write_tar(tmp_path / f"x-{number}.tar", [f"k{first + i:03d}" for i in range(count)])
        first += count
    return tmp_path


def stream(url: object, samples: int = 37, **options: Any) -> SequentialStream:
    return SequentialStream(SequentialIndex(str(url), samples), **{"seed": 1, "window": 6, "source": "x"} | options)


def keys_of(source: SequentialStream, begin: int, end: int) -> list[str]:
    try:
        return [source.read(p).key for p in range(begin, end)]
    finally:
        source.close()


def key_only(sample: Sample, rng: np.random.Generator, more: object) -> dict[str, Any]:
    return {"draw": float(rng.random())}


def test_epochs_are_the_dataset_in_new_orders(tars: Path) -> None:
    source = stream(tars)
    epochs = [keys_of(source, e * 37, e * 37 + 37) for e in range(3)]
    assert all(sorted(epoch) == [f"k{i:03d}" for i in range(37)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert keys_of(stream(tars, seed=2), 0, 37) != epochs[0]
    sample = source.read(50)
    assert sample.fields["txt"] == f"txt of {sample.key}".encode() * 5
    assert (sample.position, sample.epoch, sample.source) == (50, 1, "x")
    source.close()


@pytest.mark.parametrize("url", ["{}/x-{{0..5}}.tar", "pipe:cat {}/x-{{0..5}}.tar", "pipe:gzip -c {}/x-{{0..5}}.tar"])
def test_one_order_however_it_is_read(tars: Path, url: str) -> None:
    """Folder, pattern, command; and whichever tar of a permutation holds a position."""
    expected = keys_of(stream(tars), 0, 80)
    assert keys_of(stream(url.format(tars)), 0, 80) == expected
    assert [stream(url.format(tars)).locate(p) for p in range(80)] == [stream(tars).locate(p) for p in range(80)]


@pytest.mark.parametrize("start", [0, 1, 5, 6, 36, 37, 38, 75])
def test_resume_at_any_position(tars: Path, start: int) -> None:
    assert keys_of(stream(tars), start, 80) == keys_of(stream(tars), 0, 80)[start:]


def test_any_order_of_reads_is_right(tars: Path) -> None:
    source, expected = stream(tars), keys_of(stream(tars), 0, 80)
    for place in np.random.default_rng(0).integers(0, 80, 60):
        assert source.read(int(place)).key == expected[place]
    source.close()


def test_worlds_and_workers_see_one_order(tars: Path) -> None:
    def ledger(world: int, workers: int) -> list[list[str]]:
        options = {"seed": 0, "accum": 1, "start_step": 0, "stop_step": 7, "device_pin": False, "workers": workers}
        loaders = [make_loader({"x": stream(f"pipe:cat {tars}/x-{{0..5}}.tar")}, {"x": 12}, key_only, dict, rank=r,
                               world=world, **options) for r in range(world)]  # fmt: skip
        return [[key for batch in ranks for key in batch.keys["x"]] for ranks in zip(*loaders, strict=True)]

    expected = ledger(1, 0)
    assert [key for step in expected for key in step] == keys_of(stream(tars), 0, 84)
    for world, workers in ((2, 0), (3, 1), (1, 3), (4, 0)):
        assert ledger(world, workers) == expected


def not_three(sample: Sample, rng: np.random.Generator, more: object) -> dict[str, Any]:
    if sample.key in ("k003", "k010", "k036"):
        raise DataError("bad")
    return {"draw": 0.0}


def test_a_bad_sample_counts_once_however_many_epochs_meet_it(tars: Path) -> None:
    """Its place in the order is another in each epoch."""
    (tars / "again").mkdir()
    write_tar(tars / "again/x-0.tar", ["k003", "k004"])  # another shard of that name and key: another sample
    source = stream(f"{tars}::{tars}/again/x-0.tar", 39, on_error="skip", max_errors=4, window=3)
    loader = make_loader({"x": source}, {"x": 13}, not_three, dict, rank=0, world=1, seed=0, accum=1, start_step=0,
                         stop_step=12, device_pin=False, workers=0)  # fmt: skip
    tally, met = Tally(4), 0
    for batch in loader:
        met += len(batch.errors)
        tally.add(batch.errors)
    assert (len(tally), tally.excess) == (4, "")
    assert met >= 4 * 4


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=5), window=st.integers(1, 12), seed=st.integers(0, 9))
def test_every_epoch_is_every_sample_once(counts: list[int], window: int, seed: int, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("tars")
    first = 0
    for number, count in enumerate(counts):
        write_tar(folder / f"{number}.tar", [f"{first + i}" for i in range(count)])
        first += count
    source = stream(folder, first, window=window, seed=seed)
    assert sorted(map(int, keys_of(source, 2 * first, 3 * first))) == list(range(first))


@pytest.mark.parametrize("declared", [1, 30, 36, 38, 100])
def test_a_wrong_count_is_named_before_a_sample_is_lost(tars: Path, declared: int) -> None:
    with pytest.raises(DataError, match=rf"holds 37 samples, data\.sources\.x\.samples declares {declared}; set .*=37"):
        keys_of(stream(tars, declared, window=1000), 0, declared)


def test_truncation_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", ["a", "b", "c"]).read_bytes()
    end = whole.rindex(b"cls of c") + 512  # of the last file; then come the end mark and padding that says nothing
    for cut in [*range(0, end, 300), end // 512 * 512, end // 512 * 512 + 512]:
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        for url in (tmp_path, f"pipe:cat {tmp_path}/x.tar"):
            with pytest.raises(DataError, match=r"shard .*x\.tar, byte \d+: (truncated|a zeroed)"):
                keys_of(stream(url, 3), 0, 3)
    packed = gzip.compress(whole)
    for cut in range(20, len(packed) - 1, 37):
        (tmp_path / "x.tar").write_bytes(packed[:cut])
        with pytest.raises(DataError, match=r"shard .*x\.tar, byte \d+: "):
            list(samples_of(str(tmp_path / "x.tar")))


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("cat {0}/x-{{0..5}}.tar; exit 7", "the command ended with exit status 7"),
        ("(cat {0}/x-{{0..5}}.tar; exit 7) | cat", "the command ended with exit status 7"),
        ("cat {0}/x-{{0..5}}.tar; ls /nowhere; exit 1", "exit status 1: .*/nowhere"),
        ("head -c 700 {0}/x-{{0..5}}.tar; echo cut >&2; exit 3", "byte .*truncated.*exit status 3: cut"),
        ("exit 9", "truncated.*exit status 9"),
        ("head -c 700 {0}/x-{{0..5}}.tar", "truncated"),
        ("echo {{0..5}} no tar at all", "truncated"),
        ("nonexistent-command {{0..5}}", "exit status 127"),
    ],
)
def test_commands_that_fail_are_named(tars: Path, command: str, cause: str) -> None:
    source = stream("pipe:" + command.format(tars))
    with pytest.raises(DataError, match=rf"shard pipe:.*{cause}.*run the command by itself"):
        keys_of(source, 0, 37)


def test_a_failure_stays_until_the_pass_is_begun_anew(tars: Path) -> None:
    (tars / "x-2.tar").write_bytes((tars / "x-2.tar").read_bytes()[:1500])
    source, errors = stream(tars, on_error="skip", window=2), []
    for position in range(37):
        try:
            source.read(position)
        except DataError as error:
            errors.append(str(error))
    assert len(errors) > 10
    assert len(set(errors)) == 1
    options = {"seed": 0, "rank": 0, "world": 1, "accum": 1, "workers": 0, "start_step": 0, "device_pin": False}
    with pytest.raises(DataError, match=r"x-2\.tar"):
        list(make_loader({"x": source}, {"x": 37}, key_only, dict, stop_step=1, **options))


def test_no_process_stays(tars: Path, gone: Any) -> None:
    """Of a command's session, to which also those belong that have lost their parent."""
    before = psutil.pids()
    source = stream(f"pipe:(sleep 100 &); cat {tars}/x-0.tar - | cat; sleep 100; true", 5)
    source._pass = source._samples(0)
    assert next(source._pass)[0] == "k000"
    (session,) = {child.pid for child in psutil.Process().children() if child.pid not in before}
    end = time.monotonic() + 20
    while len(members := of_session(session)) < 3:  # the shell, what it runs now, and what has no parent any more
        assert time.monotonic() < end, members
        time.sleep(0.02)
    source.close()
    assert gone(of_session(session))


def of_session(session: int) -> list[int]:
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def test_behind_a_server(tars: Path, tmp_path_factory: Any) -> None:
    """Through fsspec: here its in-memory file system (an HTTP server is asked in tests/data/remote)."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in tars.iterdir():
        memory.pipe(f"/seq/{path.name}", path.read_bytes())
    assert keys_of(stream("memory://seq"), 0, 50) == keys_of(stream(tars), 0, 50)


def test_it_is_declared_or_refused(tars: Path) -> None:
    with pytest.raises(DataError, match="bigssl shards index"):
        DatasetIndex.load(tars)
    with pytest.raises(DataError, match=r"pipe:cat .*sequential=true.*bigssl shards index"):
        DatasetIndex.load(f"pipe:cat {tars}/x-0.tar")
    with pytest.raises(DataError, match="named twice"):
        SequentialIndex(f"{tars}/x-{{0,0}}.tar", 10)


def test_limits_and_fingerprint(tars: Path) -> None:
    index = SequentialIndex(str(tars), 37)
    for words in ("6 shards, 37 samples", "Not promised: a shuffle", "resume", "reads every shard", "checksums"):
        assert words in index.limits
    assert index.fingerprint != SequentialIndex(str(tars), 38).fingerprint
    assert index.fingerprint == SequentialIndex(str(tars), 37).fingerprint


def test_it_travels_by_pickle(tars: Path) -> None:
    source = stream(tars)
    source.read(0)
    again = pickle.loads(pickle.dumps(source))
    assert keys_of(again, 3, 9) == keys_of(source, 3, 9)


def test_credentials_of_commands_are_not_shown(tmp_path: Path) -> None:
    command = "pipe:TOKEN=abcd1234 curl -H 'Authorization: Bearer xyzw9876' https://u:pass1234@h/a-0.tar?sig=qqqq5555"
    shown = display(command)
    assert "curl" in shown and "https://h/a-0.tar" in shown
    source = stream(command.replace("curl", "echo >&2 no:") + "; false", 5)
    with pytest.raises(DataError) as failure:
        keys_of(source, 0, 5)
    for text in (shown, str(failure.value), source.index.limits):
        assert not [secret for secret in ("abcd1234", "xyzw9876", "pass1234", "qqqq5555") if secret in text], text


def test_workers_end_their_commands(tars: Path) -> None:
    """A killed worker's producer ends with its pipe."""
    script = f"""
import os, signal
from bigssl.data.order.sequential import samples_of
samples = samples_of("pipe:cat {tars}/x-2.tar /dev/zero")
next(samples)
os.kill(os.getpid(), signal.SIGKILL)
"""
    marker = str(tars / "x-2.tar")
    subprocess.run(["python", "-c", script], check=False, env=os.environ)
    end = time.monotonic() + 20
    while any(marker in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < end
        time.sleep(0.05)
