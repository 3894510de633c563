"""The index: what it records, how it is found, what it refuses, what it costs."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest

from bigssl.data import errors
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DataError, DatasetIndex, build_index
from bigssl.data.shards.urls import expand


def write_tar(path: Path, files: dict[str, bytes], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("compress", [False, True])
def test_every_member_is_where_the_index_says(dataset, compress: bool) -> None:
    index = dataset((3, 2), compress=compress, pictures=True)
    assert len(index) == 5
    assert index.fields == ("jpg", "json", "txt")
    for number in range(5):
        shard, key, members = index.entry(number)
        raw = Path(shard.url).read_bytes()
        assert (shard.bytes, shard.checksum) == (len(raw), hashlib.sha256(raw).hexdigest())
        tar = gzip.decompress(raw) if compress else raw
        with tarfile.open(fileobj=io.BytesIO(tar)) as reader:
            for field, member in members.items():
                info = reader.getmember(f"{key}.{field}")
                data = tar[member.offset : member.offset + member.length]
                assert (info.offset_data, info.size) == (member.offset, member.length)
                assert zlib.crc32(data) == member.crc32


def test_counts_names_and_fingerprint(dataset, tmp_path: Path) -> None:
    index = dataset((3, 1, 4))
    assert [(s.name, s.samples) for s in index.shards] == [(f"shard-00{i}.tar", n) for i, n in enumerate((3, 1, 4))]
    assert [index.shard_of(i) for i in range(8)] == [0, 0, 0, 1, 2, 2, 2, 2]
    moved = shutil.copytree(index.url, tmp_path / "elsewhere")
    assert DatasetIndex.load(moved).fingerprint == index.fingerprint
    assert dataset((3, 4, 1)).fingerprint != index.fingerprint
    for wrong in (-1, 8):
        with pytest.raises(IndexError, match=str(wrong)):
            index.entry(wrong)


def test_load_by_folder_tar_and_brace_pattern(dataset) -> None:
    index = dataset((3, 1, 4))
    folder = Path(index.url)
    assert DatasetIndex.load(folder / "index.json").fingerprint == index.fingerprint
    assert DatasetIndex.load(f"file://{folder}/shard-00{{0..2}}.tar").fingerprint == index.fingerprint
    assert len(DatasetIndex.load(folder / "shard-002.tar")) == 4
    two = read_in_order(DatasetIndex.load(f"{folder}/shard-00{{2,0}}.tar"))
    assert [s.key for s in two][:2] == ["s-00004", "s-00005"]


def test_a_missing_index_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"run `bigssl shards index {tmp_path}`"):
        DatasetIndex.load(tmp_path)
    tar = write_tar(tmp_path / "x.tar", {"a.txt": b"1"})
    with pytest.raises(DataError, match=f"run `bigssl shards index {tar}`"):
        DatasetIndex.load(tar)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": "other"}', b"\xff\xfe"])
def test_a_damaged_manifest_is_named(dataset, content: bytes) -> None:
    folder = Path(dataset((2,)).url)
    (folder / "index.json").write_bytes(content)
    with pytest.raises(DataError, match=r"index\.json: not an index .*run `bigssl shards index"):
        DatasetIndex.load(folder)


def test_a_manifest_without_a_field_is_named(dataset) -> None:
    folder = Path(dataset((2,)).url)
    manifest = json.loads((folder / "index.json").read_text())
    del manifest["shards"][0]["sha256"]
    (folder / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="a shard without 'sha256'"):
        DatasetIndex.load(folder)


def test_a_stale_or_missing_sidecar_is_named(dataset) -> None:
    index = dataset((2, 3))
    sidecar = Path(index.shards[1].index_url)
    content = sidecar.read_bytes()
    sidecar.write_bytes(content.replace(b"s-00003", b"s-00009"))
    fresh = DatasetIndex.load(index.url)
    assert fresh.entry(0)[1] == "s-00000"  # the other shard's is sound
    with pytest.raises(DataError, match=r"shard-001\.tar\.idx: its checksum differs.*bigssl shards verify"):
        fresh.entry(4)
    sidecar.unlink()
    with pytest.raises(DataError, match=r"no index at .*shard-001\.tar\.idx"):
        DatasetIndex.load(index.url).entry(4)


def test_two_shards_of_one_name_are_refused(tmp_path: Path) -> None:
    for part in "ab":
        (tmp_path / part).mkdir()
        write_tar(tmp_path / part / "x.tar", {f"{part}.txt": b"1"})
        build_index([tmp_path / part / "x.tar"], tmp_path / part)
    with pytest.raises(DataError, match=r"two shards are called 'x\.tar' .*b/x\.tar"):
        build_index([tmp_path / "a/x.tar", tmp_path / "b/x.tar"], tmp_path / "out")
    with pytest.raises(DataError, match=r"several shards are called 'x\.tar'"):
        DatasetIndex.load(f"{tmp_path}/{{a,b}}/x.tar")


def test_shards_outside_the_folder_of_the_index(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.txt": b"1"})
    index = build_index([tmp_path / "x.tar"], tmp_path / "out")
    assert [sample.fields for sample in read_in_order(index)] == [{"txt": b"1"}]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no samples"),
        ({"README": b""}, "no samples"),
        ({"a.txt": b"1", "b.txt": b"2", "a.jpg": b"3"}, "sample 'a', byte 2048: the key occurs twice"),
    ],
)
def test_shards_that_cannot_be_read_right_are_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    tar = write_tar(tmp_path / "x.tar", files)
    with pytest.raises(DataError, match=message):
        build_index([tar], tmp_path)


def test_an_empty_shard_among_others_is_refused(tmp_path: Path) -> None:
    tars = [write_tar(tmp_path / "full.tar", {"a.txt": b"1"}), write_tar(tmp_path / "empty.tar", {})]
    with pytest.raises(DataError, match=r"empty\.tar, byte 0: the shard has no samples"):
        build_index(tars, tmp_path)


def test_a_repeated_field_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    with pytest.raises(DataError, match="sample 'a', byte 512: the field 'txt' occurs twice"):
        build_index([tmp_path / "x.tar"], tmp_path)


def test_plain_gzip_is_refused(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "x.tar", {"a.txt": b"1", "b.txt": b"2"})
    (tmp_path / "y.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(DataError, match="sample 'b'.*compressed without flush points"):
        build_index([tmp_path / "y.tar.gz"], tmp_path)


def test_the_index_of_compressed_shards_can_be_rebuilt(dataset) -> None:
    index = dataset((5, 3), compress=True, pictures=True)
    rebuilt = build_index(expand([index.url]), index.url)
    assert rebuilt.fingerprint == index.fingerprint
    assert [rebuilt.row(i) for i in range(8)] == [index.row(i) for i in range(8)]


def test_expand(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c.tar.gz", "b.tar.idx", "notes.txt"):
        (tmp_path / name).touch()
    assert [Path(tar).name for tar in expand([str(tmp_path)])] == ["a.tar", "b.tar", "c.tar.gz"]
    assert expand(["s3://bucket/x-{00..02}.tar"]) == [f"s3://bucket/x-0{i}.tar" for i in range(3)]
    with pytest.raises(DataError, match="neither a folder nor a shard"):
        expand([str(tmp_path / "notes.txt")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no shards"):
        expand([str(tmp_path / "empty")])


def test_credentials_stay_out_of_messages() -> None:
    shown = errors.display("https://user:secret@host/x.tar?X-Amz-Signature=abc")
    assert shown == "https://host/x.tar?…"
    assert errors.display("/data/x?y.tar") == "/data/x?y.tar"
