"""Reading by range over http: retries, what is refused, what is said, and that threads and credentials stay inside."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import pytest

from bigssl.config.recipe import RemoteConfig
from bigssl.data.errors import DataError
from bigssl.data.remote.client import Remote, RemoteError
from bigssl.data.remote.files import RemoteFile

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(serve, tmp_path: Path):
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "x.tar").write_bytes(CONTENT)
    (folder / "empty.tar").write_bytes(b"")
    return serve(folder)


def test_ranges_and_whole_files(server, quick) -> None:
    before = set(threading.enumerate())
    with Remote(quick()) as remote:
        assert remote.read(f"{server.url}/x.tar", 100, 300, len(CONTENT)) == CONTENT[100:300]
        assert remote.read(f"{server.url}/x.tar", 7, 7) == b""
        assert remote.read_all([f"{server.url}/x.tar", f"{server.url}/empty.tar"]) == [CONTENT, b""]
        assert [remote.size(f"{server.url}/{name}") for name in ("x.tar", "empty.tar")] == [len(CONTENT), 0]
        assert sorted(os.path.basename(path) for path in remote.names(server.url + "/")) == ["empty.tar", "x.tar"]
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("kind", ["cut", "short", "long", "nolength", "status"])
def test_transient_failures_are_retried(server, quick, kind: str) -> None:
    server.fault(kind, times=2, status=503)
    with Remote(quick()) as remote:
        assert remote.read(f"{server.url}/x.tar", 10, 90, len(CONTENT)) == CONTENT[10:90]
    assert len(server.ranges()) == 3


def test_a_slow_body_times_out_and_is_retried(server, quick) -> None:
    server.fault("slow")
    with Remote(quick(timeout=0.3)) as remote:
        assert remote.read(f"{server.url}/x.tar", 0, 9) == CONTENT[:9]
    assert len(server.ranges()) == 2


def test_retry_after_is_obeyed_within_the_deadline(server, quick) -> None:
    server.fault("status", status=429, retry_after=60)
    with Remote(quick()) as remote, pytest.raises(RemoteError, match=r"HTTP 429 .*; 1 attempt in"):
        remote.read(f"{server.url}/x.tar", 0, 9)


@pytest.mark.parametrize("status", [401, 403, 404, 410, 416])
def test_what_stays_is_not_retried(server, quick, status: int) -> None:
    server.fault("status", status=status, times=9)
    with Remote(quick()) as remote, pytest.raises(RemoteError, match=rf"HTTP {status} .*; 1 attempt in") as failure:
        remote.read(f"{server.url}/x.tar", 0, 9)
    assert failure.value.missing == (status == 404)
    assert len(server.ranges()) == 1


@pytest.mark.parametrize(
    ("kind", "cause"),
    [("short", "40 of the 80 bytes"), ("long", "more than the 80 bytes"), ("status", "HTTP 500"), ("cut", "Payload")],
)
def test_the_last_failure_says_cause_and_attempts(server, quick, kind: str, cause: str) -> None:
    server.fault(kind, times=99, status=500)
    with Remote(quick(retries=2)) as remote, pytest.raises(RemoteError, match=rf"{cause}.*; 3 attempts in \d"):
        remote.read(f"{server.url}/x.tar", 10, 90)


def test_a_dead_server_is_named_after_the_attempts(quick) -> None:
    with Remote(quick(retries=1)) as remote, pytest.raises(RemoteError, match="ClientConnectorError.*; 2 attempts"):
        remote.read("http://127.0.0.1:9/x.tar", 0, 1)


def test_a_changed_file_is_seen_by_its_size(server, quick) -> None:
    with Remote(quick()) as remote:
        for start in (0, 10**6):
            with pytest.raises(RemoteError, match=f"changed .* it has {len(CONTENT)} bytes now, 9999999 then"):
                remote.read(f"{server.url}/x.tar", start, start + 9, 9999999)


def test_a_server_without_ranges_is_found_out_before_its_body_is_read(server, quick) -> None:
    server.set(ranges=False)
    with Remote(quick()) as remote, pytest.raises(RemoteError, match="ignores byte ranges.*; 1 attempt") as failure:
        remote.read(f"{server.url}/x.tar", 1, 9)
    assert not failure.value.ranges


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_from_front_to_back_survives_cuts(server, quick, ranges: bool) -> None:
    server.set(ranges=ranges, faults=[{"kind": "none"}, {"kind": "cut", "times": 2}])
    with Remote(quick()) as remote, RemoteFile(f"{server.url}/x.tar", remote, chunk=1000) as file:
        parts = [file.read(n) for n in (1, 0, 2999)]
        assert b"".join([*parts, file.read()]) == CONTENT
        assert file.read(5) == b""


def test_a_file_that_stays_cut_is_an_error_not_an_end(server, quick) -> None:
    server.set(ranges=False, faults=[{"kind": "none"}, {"kind": "cut", "times": 99}])
    with Remote(quick()) as remote, RemoteFile(f"{server.url}/x.tar", remote) as file, pytest.raises(RemoteError):
        file.read()


def test_many_reads_run_at_the_same_time_but_not_more_than_allowed(server, quick) -> None:
    server.set(delay=0.05)
    with Remote(quick(connections=4)) as remote:
        reads = [remote.submit(remote.get(f"{server.url}/x.tar", n, n + 10)) for n in range(24)]
        assert [read.result() for read in reads] == [CONTENT[n : n + 10] for n in range(24)]
    assert 2 <= server.log()["most"] <= 4


def test_missing_clients_and_unknown_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(protocol: str) -> type:
        raise ImportError("no module")

    with Remote() as remote, pytest.raises(DataError, match="unknown protocol 'nope'; allowed: a path"):
        remote.read("nope://a/b", 0, 1)
    with Remote() as remote, pytest.raises(DataError, match=r"chained URLs are not read; .*data\.remote\.cache"):
        remote.read("simplecache::s3://a/b", 0, 1)
    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    for protocol, extra in (("s3", "s3"), ("gs", "gcs"), ("https", "http")):
        with Remote() as remote, pytest.raises(DataError, match=rf"pip install 'bigssl\[{extra}\]'"):
            remote.read(f"{protocol}://a/b", 0, 1)


def test_it_travels_by_pickle_and_fork(server, quick) -> None:
    def child(url: str, queue: multiprocessing.SimpleQueue) -> None:
        with remote:
            queue.put(remote.read(url, 0, 5))

    remote = pickle.loads(pickle.dumps(Remote(quick())))
    assert remote.config == quick()
    with remote:
        assert remote.read(f"{server.url}/x.tar", 0, 5) == CONTENT[:5]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(f"{server.url}/x.tar", queue))
    process.start()
    assert queue.get() == CONTENT[:5]
    process.join()
    assert process.exitcode == 0


def test_credentials_stay_out_of_failures(server, quick) -> None:
    """In the URL, in its query, in the options of a client, and in what the client itself says."""
    secrets = ("s3cret-word", "t0ken-word", "k3y-word")
    options = {"http": {"headers": {"Authorization": f"Bearer {secrets[2]}"}}}
    host = server.url.removeprefix("http://")
    urls = [
        f"http://user:{secrets[0]}@{host}/none.tar?token={secrets[1]}",
        f"http://user:{secrets[0]}@127.0.0.1:9/none.tar?token={secrets[1]}",
        f"http://user:{secrets[0]}@[bad/none.tar?token={secrets[1]}",
    ]
    for url in urls:
        with Remote(RemoteConfig(retries=0, storage=options)) as remote, pytest.raises(RemoteError) as failure:
            remote.read(url, 0, 5)
        text = "".join(map(str, [failure.value, *failure.value.args])) + repr(failure.value)
        assert not [secret for secret in secrets if secret in text], text


def test_netrc_is_heeded(server, quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.set(login="user:secret")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Remote(quick()) as remote:
        assert remote.read(f"{server.url}/x.tar", 0, 5) == CONTENT[:5]


def test_login_and_token_are_sent(server, quick) -> None:
    host = server.url.removeprefix("http://")
    server.set(login="user:pa%ss", token="abc")
    with Remote(quick()) as remote:
        assert remote.read(f"http://user:pa%25ss@{host}/x.tar?token=abc", 0, 5) == CONTENT[:5]
        with pytest.raises(RemoteError, match="HTTP 401"):
            remote.read(f"http://user:other@{host}/x.tar?token=abc", 0, 5)
