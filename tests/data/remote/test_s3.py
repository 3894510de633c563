"""The same against an S3 server: index there, read from there, faults, and no key in a message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bigssl.cli import main
from bigssl.config.recipe import RemoteConfig
from bigssl.data.errors import DataError
from bigssl.data.order.stream import SampleReader, Stream, read_in_order
from bigssl.data.shards.index import DatasetIndex, build_index
from bigssl.data.shards.urls import expand

moto_server = pytest.importorskip("moto.server")
moto_parts = pytest.importorskip("moto.moto_server.threaded_moto_server")
pytest.importorskip("s3fs")
KEY, SECRET = "AKIAEXAMPLEEXAMPLE", "wJalrXUtnFEMI-secret-EXAMPLEKEY"


FAULTS: list[str] = []


class Faulty(moto_parts.DomainDispatcherApplication):
    """The server's application; spoils one answer about a shard for each of FAULTS."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if not FAULTS or not environ["PATH_INFO"].endswith(".tar") or environ["REQUEST_METHOD"] != "GET":
            return super().__call__(environ, start_response)
        kind = FAULTS.pop(0)
        if kind in ("500", "503"):
            start_response(f"{kind} Spoiled", [("Content-Length", "0")])
            return [b""]
        body = b"".join(super().__call__(environ, start_response))
        return [body[: len(body) // 2] if kind == "cut" else bytes(byte ^ (byte == ord("t")) for byte in body)]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moto_parts, "DomainDispatcherApplication", Faulty)
        yield from serve_s3()


def serve_s3() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """An empty bucket of its own, and the environment to reach it: its name and a boto client."""
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = "b" + str(abs(hash(request.node.name)))
    client = boto3.client("s3")
    client.create_bucket(Bucket=name)
    yield name, client
    client.close()


def upload(bucket: Any, folder: str | Path, suffix: str = "") -> None:
    name, client = bucket
    for path in Path(folder).iterdir():
        if path.name.endswith(suffix):
            client.put_object(Bucket=name, Key=f"data/{path.name}", Body=path.read_bytes())


@pytest.mark.parametrize("cache", [False, True])
def test_s3_is_like_local(dataset, bucket, quick, cache: bool) -> None:
    local = dataset((5, 1, 13), pictures=True)
    upload(bucket, local.url)
    index = DatasetIndex.load(f"s3://{bucket[0]}/data", quick(cache=cache))
    assert index.fingerprint == local.fingerprint
    streams = [Stream(i, seed=1, lanes=3, window=4) for i in (local, index)]
    for step in range(3):
        places = [s.micro_batch(step, 8, 0, 1, 0, 1) for s in streams]
        streams[1].announce(places[1], streams[1].micro_batch(step + 1, 8, 0, 1, 0, 1))
        assert [streams[1].read(p) for p in places[1]] == [streams[0].read(p) for p in places[0]]
    streams[1].close()


def test_the_index_is_written_beside_the_shards(dataset, bucket, capsys: Any) -> None:
    local = dataset((5, 3), compress=True)
    upload(bucket, local.url, ".gz")
    url = f"s3://{bucket[0]}/data"
    assert [tar.split("/")[-1] for tar in expand([url])] == [shard.name for shard in local.shards]
    assert main.main(["shards", "index", url]) == 0
    assert "8 samples in 2 shards" in capsys.readouterr().out
    index = DatasetIndex.load(url)
    assert index.fingerprint == local.fingerprint
    assert [s.fields for s in read_in_order(index)] == [s.fields for s in read_in_order(local)]


def test_the_index_of_remote_shards_in_a_local_folder(dataset, bucket, tmp_path: Path) -> None:
    local = dataset((5, 3))
    upload(bucket, local.url, ".tar")
    tars = f"s3://{bucket[0]}/data/shard-{{000..001}}.tar"
    assert main.main(["shards", "index", tars, "--out", str(tmp_path / "idx")]) == 0
    index = DatasetIndex.load(tmp_path / "idx")
    assert index.shards[1].url == f"s3://{bucket[0]}/data/shard-001.tar"
    assert [s.fields for s in read_in_order(index)] == [s.fields for s in read_in_order(local)]


def test_faults_are_retried(dataset, bucket, quick) -> None:
    local = dataset((9,))
    upload(bucket, local.url)
    reader = SampleReader(DatasetIndex.load(f"s3://{bucket[0]}/data", quick(timeout=3)))
    for kind in ("500", "503", "cut", "flip"):
        FAULTS[:] = [kind] if kind == "flip" else [kind] * 2
        assert reader.read(2).fields == SampleReader(local).read(2).fields
        assert not FAULTS
    FAULTS[:] = ["500"] * 99
    with pytest.raises(DataError, match=r"sample 's-00001', byte \d+: cannot be read .*; 4 attempts in"):
        reader.read(1)
    assert len(FAULTS) == 95  # the client repeats nothing by itself
    FAULTS.clear()
    reader.close()


def test_shrunk_and_missing_objects_are_named(dataset, bucket, quick) -> None:
    local = dataset((5,))
    upload(bucket, local.url)
    name, client = bucket
    reader = SampleReader(DatasetIndex.load(f"s3://{name}/data", quick()))
    assert reader.read(0).key == "s-00000"
    data = Path(local.shards[0].url).read_bytes()
    client.put_object(Bucket=name, Key="data/shard-000.tar", Body=data[: local.row(4)[1].start + 100])
    with pytest.raises(DataError, match=r"sample 's-00004', byte \d+: .*changed after it was .* it has \d+ bytes"):
        reader.read(4)
    assert reader.read(3).key == "s-00003"
    client.delete_object(Bucket=name, Key="data/shard-000.tar")
    with pytest.raises(DataError, match=rf"s3://{name}/data/shard-000.tar, sample 's-00002', byte \d+: cannot be read"):
        reader.read(2)
    reader.close()


def test_keys_stay_out_of_messages(dataset, bucket, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    local = dataset((5,))
    upload(bucket, local.url)
    url = f"s3://{bucket[0]}/data"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    storage = {"s3": {"key": KEY, "secret": SECRET, "endpoint_url": endpoint}}
    assert len(DatasetIndex.load(url, RemoteConfig(storage=storage))) == 5
    for wrong in ({"endpoint_url": "http://127.0.0.1:9"}, {"bogus": SECRET}, {"client_kwargs": {"nope": SECRET}}):
        config = RemoteConfig(retries=0, storage={"s3": {**storage["s3"], **wrong}})
        with pytest.raises(DataError) as failure:
            DatasetIndex.load(url, config)
        assert SECRET not in str(failure.value) and KEY not in str(failure.value)


def test_a_bucket_that_is_not_there(bucket) -> None:
    with pytest.raises(DataError, match=r"no index at s3://nowhere-at-all/x/index\.json"):
        DatasetIndex.load("s3://nowhere-at-all/x", RemoteConfig(retries=0))
    with pytest.raises(DataError, match="cannot be listed|no shards"):
        build_index(expand(["s3://nowhere-at-all/x/"]), "s3://nowhere-at-all/x")
