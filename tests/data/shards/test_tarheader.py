"""What no shard may ask for: paths out of the folder, links, devices, absurd sizes; each named with its place."""

from __future__ import annotations

import gzip
import json
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from bigssl.config import limits
from bigssl.config.limits import Limits
from bigssl.data.errors import DataError
from bigssl.data.order.sequential import samples_of
from bigssl.data.order.stream import SampleReader, Stream
from bigssl.data.shards import tarwalk
from bigssl.data.shards.index import DatasetIndex, build_index, scan
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.verify import verify


def info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, pax: dict[str, str] | None = None) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.pax_headers = size, kind, pax or {}
    return made


def header(made: tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> bytes:
    return made.tobuf(form)


def write(folder: Path, *parts: bytes) -> str:
    """A tar of a sound sample `a` (two blocks), then `parts`, then the end mark."""
    path = folder / "x.tar"
    path.write_bytes(b"".join([header(info("a.txt", 3)), b"abc".ljust(512, b"\0"), *parts, bytes(1024)]))
    return str(path)


def refused(url: str, cause: str) -> None:
    """The indexer stops at byte 1024 with this cause, and verify names the same."""
    with pytest.raises(DataError, match=cause) as caught:
        scan(url)
    assert caught.value.offset == 1024
    (_, finding) = verify(url)  # the first says that there is no index
    assert (finding.shard, finding.offset) == ("x.tar", 1024)
    assert finding.cause.startswith(caught.value.cause)


@pytest.mark.parametrize("name", ["/etc/b.txt", "\\b.txt", "C:\\b.txt", "c:/b.txt"])
def test_absolute_names(tmp_path: Path, name: str) -> None:
    refused(write(tmp_path, header(info(name))), "has an absolute path")


@pytest.mark.parametrize("name", ["../b.txt", "x/../../b.txt", "x\\..\\b.txt", "x/.."])
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    refused(write(tmp_path, header(info(name))), "leads out of its folder")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_judged_too(tmp_path: Path, form: int) -> None:
    url = write(tmp_path, header(info("../" + "b" * 200 + ".txt"), form))
    with pytest.raises(DataError, match="leads out of its folder"):
        scan(url)


@pytest.mark.parametrize("name", ["./b.txt", "x..y/b.txt", "..b/c.txt", "b" * 200 + ".txt", "größe.txt"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_ordinary_names_pass(tmp_path: Path, name: str, form: int) -> None:
    rows, _, _ = scan(write(tmp_path, header(info(name), form)))
    assert [row.key for row in rows] == ["a", name.removesuffix(".txt")]


def test_names_in_other_encodings(tmp_path: Path) -> None:
    name = b"gr\xfc\xdfe.txt".decode("utf-8", "surrogateescape")
    refused(write(tmp_path, info(name).tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")), "is not UTF-8")


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (tarfile.SYMTYPE, "is a symbolic link"),
        (tarfile.LNKTYPE, "is a hard link"),
        (tarfile.CHRTYPE, "is a device"),
        (tarfile.BLKTYPE, "is a device"),
        (tarfile.FIFOTYPE, "is a named pipe"),
        (tarfile.GNUTYPE_SPARSE, "is a sparse file"),
        (b"Z", "is of the unknown kind b'Z'"),
    ],
)
def test_only_ordinary_files(tmp_path: Path, kind: bytes, cause: str) -> None:
    link = info("b.txt", kind=kind)
    link.linkname = "/etc/passwd"
    refused(write(tmp_path, header(link)), f"member 'b.txt' {cause}; a shard holds ordinary files only")


def test_long_links_are_links(tmp_path: Path) -> None:
    link = info("b.txt", kind=tarfile.SYMTYPE)
    link.linkname = "x" * 200
    with pytest.raises(DataError, match="is a link"):
        scan(write(tmp_path, header(link)))


def test_folders_are_passed_over(tmp_path: Path) -> None:
    folder = info("sub", size=1 << 40, kind=tarfile.DIRTYPE)  # a size that means nothing: no bytes follow
    rows, _, _ = scan(write(tmp_path, header(folder), header(info("sub/b.txt", 2)), b"xy".ljust(512, b"\0")))
    assert [(row.key, row.members["txt"].length) for row in rows] == [("a", 3), ("sub/b", 2)]


@pytest.mark.parametrize("size", [1 << 31, 1 << 35, 1 << 62])  # from 8 GiB on the number is written in base 256
def test_absurd_sizes(tmp_path: Path, size: int) -> None:
    cause = f"member 'b.txt' refused: {size} is over the limit member_bytes = 1073741824"
    refused(write(tmp_path, header(info("b.txt", size))), cause)


def test_negative_and_meaningless_sizes(tmp_path: Path) -> None:
    refused(write(tmp_path, header(info("b.txt", -5))), "member 'b.txt' has a size of -5")
    block = bytearray(header(info("b.txt")))
    block[124:136] = b"not a number"
    chksum = sum(block[:148]) + sum(block[156:]) + 8 * 32
    block[148:156] = b"%06o\0 " % chksum
    refused(write(tmp_path, bytes(block)), "bad tar header")


@pytest.mark.parametrize("size", ["1" * 30, "-1", "x", "", "1e3", "٣"])
def test_sizes_in_pax_headers(tmp_path: Path, size: str) -> None:
    url = write(tmp_path, header(info("b.txt", pax={"size": size}), tarfile.PAX_FORMAT))
    with pytest.raises(DataError, match="member 'b.txt' has a size of"):
        scan(url)
    large = write(tmp_path, header(info("b.txt", pax={"size": str(1 << 40)}), tarfile.PAX_FORMAT))
    with pytest.raises(DataError, match="member 'b.txt' refused: .* member_bytes"):
        scan(large)


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"99999 path=x\n", "a record of 99999 bytes"),
        (b"0 path=x\n", "a record of 0 bytes"),
        (b"nonsense", "bad pax header"),
        (b"5 abc", "bad pax header"),
    ],
)
def test_damaged_pax_records(tmp_path: Path, body: bytes, cause: str) -> None:
    pax = header(info("p", len(body), tarfile.XHDTYPE)) + body.ljust(512, b"\0")
    refused(write(tmp_path, pax, header(info("b.txt"))), cause)


def test_extended_headers_that_are_too_long(tmp_path: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        refused(write(tmp_path, header(info("p", 1 << 30, kind))), "an extended header of 1073741824 bytes")


def test_global_pax_headers_may_comment_but_not_name(tmp_path: Path) -> None:
    comment = b"17 comment=hallo\n"
    sound = header(info("g", len(comment), tarfile.XGLTYPE)) + comment.ljust(512, b"\0")
    assert [row.key for row in scan(write(tmp_path, sound, header(info("b.txt"))))[0]] == ["a", "b"]
    body = b"14 path=b.txt\n"
    hostile = header(info("g", len(body), tarfile.XGLTYPE)) + body.ljust(512, b"\0")
    refused(write(tmp_path, hostile, header(info("c.txt"))), "a global pax header with a path or a size")


def test_sparse_files_of_pax(tmp_path: Path) -> None:
    url = write(tmp_path, header(info("b.txt", pax={"GNU.sparse.major": "1"}), tarfile.PAX_FORMAT))
    with pytest.raises(DataError, match="is a sparse file"):
        scan(url)


def test_too_many_members(tmp_path: Path) -> None:
    url = write(tmp_path, *(header(info(f"b{i}.txt")) for i in range(4)))
    with limits.applied(Limits(shard_members=5)):
        assert len(scan(url)[0]) == 5
    with limits.applied(Limits(shard_members=4)), pytest.raises(DataError, match="5 is over the limit shard_members"):
        scan(url)


def sample(folder: Path, fields: dict[str, bytes], compress: bool = False) -> DatasetIndex:
    return pack([Item("a", "a", lambda: fields)], folder, name="x", compress=compress)[""]


@pytest.mark.parametrize("compress", [False, True])
def test_limits_hold_for_the_indexer_and_for_the_stream(tmp_path: Path, compress: bool) -> None:
    noise = np.random.default_rng(0).bytes(6000)
    index = sample(tmp_path / "x", {"jpg": noise, "txt": b"a"}, compress)
    stream = Stream(index, seed=0)
    size = 512 + 6144 + 512 + 1
    for name, value in (("member_bytes", 6000), ("sample_bytes", size)):
        with limits.applied(Limits(**{name: value})):
            build_index([index.shards[0].url], tmp_path / "again")
            assert stream.read(0).fields["jpg"] == noise
        with limits.applied(Limits(**{name: value - 1})):
            for read in (lambda: build_index([index.shards[0].url], tmp_path / "again"), lambda: stream.read(0)):
                with pytest.raises(DataError, match=f"{value} is over the limit {name} = {value - 1}") as caught:
                    read()
                assert caught.value.offset == 0


def test_gzip_bombs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="compression refused"):
        sample(tmp_path / "x", {"bin": bytes(3 << 20)}, compress=True)
    with limits.applied(Limits(ratio=2000)):
        index = sample(tmp_path / "x", {"bin": bytes(3 << 20)}, compress=True)
    size = index.shards[0].bytes
    assert size < 10_000
    with pytest.raises(DataError, match=r"compression refused: \d+ is over the limit ratio = 250"):
        scan(index.shards[0].url)
    with pytest.raises(DataError, match=r"sample 'a', byte \d+: .*refused: \d+ is over the limit ratio = 250"):
        Stream(index, seed=0).read(0)
    with limits.applied(Limits(ratio=2000)):
        assert len(Stream(index, seed=0).read(0).fields["bin"]) == 3 << 20


def test_gzip_bombs_in_sequential_sources(tmp_path: Path) -> None:
    with limits.applied(Limits(ratio=2000)):
        url = sample(tmp_path / "x", {"bin": bytes(3 << 20)}, compress=True).shards[0].url
        assert [key for key, _ in samples_of(url)] == ["a"]
    for read in (url, f"pipe:cat {url}"):
        with pytest.raises(DataError, match=r"compression refused: \d+ is over the limit ratio = 250"):
            list(samples_of(read))


def test_a_bomb_behind_the_end_mark(tmp_path: Path) -> None:
    tar = header(info("a.txt", 3)) + b"abc".ljust(512, b"\0") + bytes(1024)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tar + bytes(50 << 20)))
    with pytest.raises(DataError, match="compression refused"):
        scan(str(tmp_path / "x.tar.gz"))


def test_small_and_dense_shards_pass(tmp_path: Path) -> None:
    zeros = bytes((1 << 20) - (16 << 10))  # far over the ratio, but harmless
    index = sample(tmp_path / "x", {"bin": zeros}, compress=True)
    assert list(verify(index.url)) == []


def test_a_sidecar_that_claims_too_much(tmp_path: Path) -> None:
    """Whoever writes the index can claim any length: it is refused before memory is taken for it."""
    index = sample(tmp_path / "x", {"txt": b"abc"})
    tar = index.shards[0].url
    lines = Path(tar + ".idx").read_text().splitlines()
    row = json.loads(lines[1])
    row[2], row[4]["txt"][1] = 1 << 50, 1 << 49
    Path(tar + ".idx").write_text("\n".join([lines[0], json.dumps(row), ""]))
    with pytest.raises(DataError, match="sample refused: 562949953421312 is over the limit member_bytes"):
        SampleReader(DatasetIndex.load(tar)).read(0)


def test_inflating_stops_at_the_limit() -> None:
    bomb = gzip.compress(bytes(100 << 20))[10:]
    tracemalloc.start()
    try:
        with pytest.raises(zlib.error, match="ratio = 250"):
            tarwalk.inflate_range(bomb)
        assert tracemalloc.get_traced_memory()[1] < 60 << 20
    finally:
        tracemalloc.stop()
