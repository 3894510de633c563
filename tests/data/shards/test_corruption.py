"""Damage of every kind: named by readers when they meet it, found by verify, refused by the indexer."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bigssl.data.errors import DataError
from bigssl.data.order.stream import Stream, read_in_order
from bigssl.data.shards.index import DatasetIndex, build_index, scan
from bigssl.data.tools.verify import Finding, verify

BLOCK = 512


def shard_path(index: DatasetIndex, number: int = 0) -> Path:
    return Path(index.shards[number].url)


def edit(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(bytes(content))


def findings(index: DatasetIndex) -> list[Finding]:
    return list(verify(index.url))


def read_all(index: DatasetIndex) -> None:
    for _ in read_in_order(DatasetIndex.load(index.url)):
        pass


@pytest.mark.parametrize("compress", [False, True])
def test_sound_data_has_no_findings(dataset, compress: bool) -> None:
    assert findings(dataset((3, 2), compress=compress, pictures=True)) == []


@pytest.mark.parametrize("compress", [False, True])
def test_a_flipped_payload_byte(dataset, compress: bool) -> None:
    index = dataset((3, 2), compress=compress)
    shard, row = index.row(4)
    if compress:
        edit(Path(shard.url), row.start + row.length - 40, b"\xaa")
    else:
        edit(Path(shard.url), row.members["txt"].offset + 2, b"\xaa")
    with pytest.raises(
        DataError, match=r"shard .*shard-001\.tar\S*, sample 's-00004', byte \d+: .*bigssl shards verify"
    ):
        read_all(index)
    found = findings(index)
    assert {(f.shard, f.key) for f in found} >= {(shard.name, "s-00004")}
    if not compress:
        (one,) = found
        assert (one.offset, "field 'txt' differs" in one.cause) == (row.members["txt"].offset, True)


def test_truncation_at_every_boundary(dataset) -> None:
    """Cut at each header, inside it, inside and at the end of each payload, and in the end mark: always noticed."""
    index = dataset((3,))
    path = shard_path(index)
    whole = path.read_bytes()
    members = [m for number in range(3) for m in index.entry(number)[2].values()]
    end = max(m.offset for m in members) + BLOCK
    cuts = {m.offset + d for m in members for d in (-BLOCK, -BLOCK + 100, -1, 0, 1, m.length - 1, m.length)}
    for cut in sorted(cuts | {0, end, end + 1, end + BLOCK, end + 2 * BLOCK - 1}):
        path.write_bytes(whole[:cut])
        found = findings(index)
        assert found, cut
        assert {f.shard for f in found} == {"shard-000.tar"}
        assert any("truncated" in f.cause for f in found), (cut, found)
        with pytest.raises(DataError, match="truncated"):
            scan(str(path))
        readable = all(m.offset + m.length <= cut for m in members)
        if readable:
            read_all(index)
        else:
            with pytest.raises(DataError, match=r"shard-000\.tar, sample 's-0000\d', byte \d+: .*truncated"):
                read_all(index)
    path.write_bytes(whole)
    assert findings(index) == []


def test_truncation_of_a_compressed_shard(dataset) -> None:
    index = dataset((4,), compress=True)
    path = shard_path(index)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        assert findings(index), cut
        with pytest.raises(DataError):
            scan(str(path))


def test_every_flipped_bit_of_structure(dataset) -> None:
    """A damaged header anywhere: where webdataset's reader ends early without a word, verify says where."""
    index = dataset((3,))
    path = shard_path(index)
    whole = path.read_bytes()
    _, _, members = index.entry(1)
    header = members["txt"].offset - BLOCK
    for at in (0, 60, 100, 124, 136, 148, 156, 257):  # name, name's end, mode, size, time, checksum, type, magic
        path.write_bytes(whole)
        edit(path, header + at, bytes([whole[header + at] ^ 1]))
        found = findings(index)
        assert any(f.offset == header and "bad tar header" in f.cause for f in found), (at, found)
        with pytest.raises(DataError, match=f"byte {header}: bad tar header"):
            build_index([path], path.parent / "again")


def test_a_zeroed_header_hides_nothing(dataset) -> None:
    index = dataset((3,))
    _, _, members = index.entry(1)
    edit(shard_path(index), members["json"].offset - BLOCK, bytes(BLOCK))
    assert any("zeroed header in the middle" in f.cause for f in findings(index))


def test_a_zeroed_tail_is_found(dataset) -> None:
    """Zeros to the end look like a proper end to any tar reader; only the index knows what should be there."""
    index = dataset((3,))
    path = shard_path(index)
    _, _, members = index.entry(2)
    begin = members["json"].offset - BLOCK
    edit(path, begin, bytes(len(path.read_bytes()) - begin))
    assert {(f.key, "differs" in f.cause) for f in findings(index)} == {("s-00002", True)}


def test_a_missing_shard(dataset) -> None:
    index = dataset((3, 2))
    shard_path(index, 1).unlink()
    assert findings(index) == [Finding("shard-001.tar", None, None, "the shard is missing")]
    with pytest.raises(DataError, match=r"shard-001\.tar, sample 's-00003', byte 0: .*No such file"):
        read_all(index)


def test_a_shard_changed_under_a_running_job(dataset) -> None:
    index, other = dataset((3, 2)), dataset((4, 2))
    stream = Stream(index, seed=0)
    stream.read(0)
    shard_path(index).write_bytes(shard_path(other, 1).read_bytes())
    for position in range(5):
        if stream.locate(position)[1] < 3:
            with pytest.raises(DataError, match=r"shard-000\.tar, sample 's-0000[0-2]'.*"):
                stream.read(position)
    assert {f.shard for f in findings(index)} == {"shard-000.tar"}


def test_a_shard_repacked_with_equal_samples_is_found(dataset) -> None:
    """Equal payloads, another time in a header: samples are right, the file is not the one that was indexed."""
    index = dataset((3,))
    path = shard_path(index)
    header = bytearray(path.read_bytes()[:BLOCK])
    header[136:148] = b"00000000001\0"
    header[148:156] = b" " * 8
    edit(path, 0, bytes(header[:148]) + b"%06o\0 " % sum(header) + bytes(header[156:]))
    (found,) = findings(index)
    assert "differs from its checksum" in found.cause


def test_a_stranger_is_found(dataset) -> None:
    index = dataset((3,))
    shutil.copy(shard_path(index), Path(index.url) / "late.tar")
    assert [(f.shard, "not in the index" in f.cause) for f in findings(index)] == [("late.tar", True)]


def repack(index: DatasetIndex, change: Callable[[str, dict[str, bytes]], dict[str, bytes]]) -> DatasetIndex:
    """The same samples with `change` applied, written and indexed anew: damage that was there before packing."""
    from bigssl.data.tools.pack import pack
    from bigssl.data.tools.sources.base import Item

    items = [Item(s.key, s.key, lambda s=s: change(s.key, dict(s.fields))) for s in read_in_order(index)]  # type: ignore[misc]
    return pack(items, Path(index.url + "-changed"), name="x")[""]


@pytest.mark.parametrize(
    ("field", "data", "cause"),
    [
        ("jpg", b"", "undecodable image"),
        ("jpg", b"no picture", "no known picture format"),
        ("txt", b"\xff\xfe", "not UTF-8"),
        ("json", b"{", "not JSON"),
        ("json", b"[1]", "sentence 0 is int 1, not text"),
        ("npy", b"123", "not an .npy array"),
    ],
)
def test_undecodable_fields_are_found(dataset, field: str, data: bytes, cause: str) -> None:
    index = repack(dataset((3,)), lambda key, fields: fields | ({field: data} if key == "s-00001" else {}))
    found = [f for f in findings(index) if not f.cause.startswith("no field")]
    assert [(f.key, f.cause.startswith(f"field '{field}'"), cause in f.cause) for f in found] == [
        ("s-00001", True, True)
    ]
    assert found[0].offset == index.entry(1)[2][field].offset


def test_a_cut_off_picture_is_found(dataset) -> None:
    def cut(key: str, fields: dict[str, bytes]) -> dict[str, bytes]:
        return fields | {"jpg": fields["jpg"][:-200]} if key == "s-00002" else fields

    (found,) = findings(repack(dataset((3,), pictures=True), cut))
    assert (found.key, "truncated" in found.cause) == ("s-00002", True)


def test_a_sample_without_a_field_is_found(dataset) -> None:
    def drop(key: str, fields: dict[str, bytes]) -> dict[str, bytes]:
        return {name: data for name, data in fields.items() if (key, name) != ("s-00001", "txt")}

    (found,) = findings(repack(dataset((3,)), drop))
    assert (found.key, found.cause) == ("s-00001", "no field txt, which other samples have")


def test_shards_without_an_index_are_read_too(dataset) -> None:
    index = dataset((3, 2))
    for path in Path(index.url).glob("*.idx"):
        path.unlink()
    (Path(index.url) / "index.json").unlink()
    edit(shard_path(index, 1), 150, b"7")
    (Path(index.url) / "empty.tar").write_bytes(bytes(10240))
    found = findings(index)
    assert "no index" in found[0].cause
    assert {(f.shard, f.cause.split(" (")[0]) for f in found[1:]} == {
        ("shard-001.tar", "bad tar header"),
        ("empty.tar", "the shard has no samples"),
    }


def test_damaged_gzip_trailer(dataset) -> None:
    index = dataset((3,), compress=True)
    path = shard_path(index)
    edit(path, path.stat().st_size - 6, b"\x00\x01")
    assert any("compressed stream is damaged" in f.cause for f in findings(index))
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(path.read_bytes())
