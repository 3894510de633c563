"""Tars as people make them, read by us, by webdataset and by tarfile: every file is in a sample, or counted and named,
or the shard is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bigssl import limits
from bigssl.cli import main
from bigssl.data.errors import DataError
from bigssl.data.index import DatasetIndex, build_index, scan
from bigssl.data.leftout import HIDDEN, META, NAMELESS, LeftOut
from bigssl.data.sequential import samples_of
from bigssl.data.stream import in_order
from bigssl.data.verify import verify
from bigssl.limits import Limits

LONG = "d" * 90 + "/" + "n" * 60
NAMES = [
    "a.jpg", "a.txt", "./b.txt", "x.y/c.txt", "sub/", "sub/d.seg.PNG", "sub/d.cls", f"{LONG}.txt", "größe.txt",
    "__v1deo.txt", "__v1deo.json", "__meta__.json", "new\nline.txt", "dot..txt", "empty.", "A.jpg", "z.b.c.d",
]  # fmt: skip
OUT = {
    "photos/.DS_Store": HIDDEN, "photos/._p0.txt": HIDDEN, "._a.jpg": HIDDEN, "README": NAMELESS, "Makefile": NAMELESS,
    "__done__": META, "__index__/x.txt": META,
}  # fmt: skip


def tar(names: list[str], form: int = tarfile.GNU_FORMAT, **facts: object) -> bytes:
    """A tar of these files, each with its own name as content (every third one empty); `NAME/` is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8") as made:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            data = b"" if name.endswith("/") or number % 3 == 2 else name.encode()
            info.size = len(data)
            for fact, value in facts.items():
                setattr(info, fact, value)
            made.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def v7(name: str, data: bytes) -> bytes:
    """A member as tar wrote it before POSIX: no magic, a NUL for the type."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136], block[136:148], block[148:156] = b"%011o\0" % len(data), b"0" * 11 + b"\0", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data.ljust(-(-len(data) // 512) * 512, b"\0")


def by_webdataset(data: bytes) -> list[tuple[str, dict[str, bytes]]]:
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    files = ({**found, "__url__": "x"} for found in tar_file_iterator(io.BytesIO(data)))
    return [(s["__key__"], {k: v for k, v in s.items() if k[:2] != "__"}) for s in group_by_keys(files)]


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


KINDS: dict[str, Callable[[], bytes]] = {
    "gnu": lambda: tar(NAMES),
    "pax": lambda: tar(NAMES, tarfile.PAX_FORMAT),
    "ustar": lambda: tar(NAMES, tarfile.USTAR_FORMAT),
    "huge owners": lambda: tar(NAMES, uid=1 << 40, gid=1 << 33, mtime=1 << 35, uname="ü" * 12),
    "pax owners": lambda: tar(NAMES, tarfile.PAX_FORMAT, uid=1 << 40, mtime=1.5, pax_headers={"comment": "hallo"}),
    "v7": lambda: b"".join(v7(name, name.encode()) for name in ("a.jpg", "a.txt", "sub/", "b.txt")) + bytes(1024),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_wrote_it_webdataset_and_we_see_the_same(tmp_path: Path, kind: str) -> None:
    data = KINDS[kind]()
    if kind == "v7":  # its folder has no content
        data = data.replace(v7("sub/", b"sub/"), v7("sub/", b""))
    url = write(tmp_path / "x.tar", data)
    left_out = LeftOut()
    sequential = list(samples_of(url, None, left_out))
    assert sequential == by_webdataset(data)
    index = build_index([url], tmp_path)
    assert [(s.key, s.fields) for s in in_order(index)] == sequential
    with tarfile.open(url) as members:
        files = [member for member in members if member.isreg()]
    assert sum(len(fields) for _, fields in sequential) == len(files)
    assert not left_out
    assert not index.left_out


def test_what_is_no_sample_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sample key that begins with `__` is a sample: webdataset passes over `__NAME__` only."""
    names = [name for pair in zip(OUT, NAMES, strict=False) for name in pair] + NAMES[len(OUT) :]
    url, left_out = write(tmp_path / "x.tar", tar(names)), LeftOut()
    scan(url, None, left_out)
    expected = {reason: sorted(n for n, r in OUT.items() if r == reason) for reason in OUT.values()}
    found = left_out.as_json()
    assert {reason: [count, sorted(examples)] for reason, (count, examples) in found.items()} == {
        reason: [len(names), names] for reason, names in expected.items()
    }
    assert main(["shards", "index", str(tmp_path)]) == 0
    first = capsys.readouterr()
    assert "left out: 3 hidden files" in first.err and "'photos/._p0.txt'" in first.err and "README" in first.err
    fields = {(s.key, f) for s in in_order(DatasetIndex.load(tmp_path)) for f in s.fields}
    assert {("__v1deo", "json"), ("__v1deo", "txt")} <= fields
    assert len(fields) + len(OUT) == len([name for name in names if not name.endswith("/")])
    assert main(["shards", "verify", str(tmp_path)]) in (0, 1)
    assert "left out: 3 hidden files" in capsys.readouterr().err
    assert main(["shards", "inspect", str(tmp_path)]) == 0
    assert "left out: 2 files that webdataset passes over" in capsys.readouterr().err


def test_counts_of_shards_add_up() -> None:
    whole = LeftOut()
    for shard in range(4):
        part = LeftOut()
        for number in range(5):
            part.add(HIDDEN, f".{shard}-{number}")
        whole.merge(LeftOut(part.as_json()))
    assert whole.as_json() == {HIDDEN: [20, [".0-0", ".0-1", ".0-2"]]}


ENDS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "another tar appended": lambda a, b: a + b,
    "another tar behind the end mark": lambda a, b: a[:2560] + bytes(1024) + b,
    "two zeroed blocks in the middle": lambda a, b: a[:1024] + bytes(1024) + a[2048:],
    "one byte far behind": lambda a, b: a + bytes(2 << 20) + b"\1",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("packing", ["x.tar", "x.tgz"])
def test_nothing_may_stand_behind_the_end_mark(tmp_path: Path, end: str, packing: str) -> None:
    """Every other reader stops there: what follows would be lost without a word."""
    parts = [tar([f"{part}{i}.txt" for i in (0, 1, 3)]) for part in "ab"]
    parts[0] = tar([f"a{i}.txt" for i in range(3)])
    data = ENDS[end](*parts)
    packed = gzip.compress(data) if packing.endswith("gz") else data
    url = write(tmp_path / packing, packed)
    message = rf"{packing}, byte \d+: data follows the end mark .*tar --ignore-zeros` and run `bigssl shards pack"
    with limits.applied(Limits(ratio=100_000)):
        for read in (lambda: scan(url), lambda: list(samples_of(url)), lambda: list(samples_of(f"pipe:cat {url}"))):
            with pytest.raises(DataError, match=message) as caught:
                read()
            assert data[caught.value.offset] != 0
            assert not any(data[caught.value.offset - 1024 : caught.value.offset])
        assert any("data follows the end mark" in finding.cause for finding in verify(url))


def test_padding_of_zeros_is_no_damage(tmp_path: Path) -> None:
    data = tar(["a.txt"])
    for size in (0, 1, 511, 10240, 3 << 20):
        assert len(scan(write(tmp_path / "x.tar", data[:2560] + bytes(size)))[0]) == 1


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    half = len(data) // 2  # two frames, as `cat a.zst b.zst` makes them
    compress = zstandard.ZstdCompressor(write_checksum=True).compress
    return compress(data[:half]) + compress(data[half:])


PACKINGS: dict[str, tuple[list[str], Callable[[bytes], bytes]]] = {
    "gzip": ([".tar.gz", ".tgz", ".TGZ", ".tar"], gzip.compress),
    "bzip2": ([".tar.bz2", ".tbz2", ".tar"], bz2.compress),
    "xz": ([".tar.xz", ".txz", ".tar"], lzma.compress),
    "zstd": ([".tar.zst", ".tzst", ".tar"], zstd),
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_tars_are_read_from_front_to_back(tmp_path: Path, packing: str) -> None:
    """By their first bytes, each unpacked once; cut off or damaged, they are never taken for a shorter tar."""
    data = tar([f"a{i}.txt" for i in range(40)])
    suffixes, compress = PACKINGS[packing]
    packed = compress(data)
    for suffix in suffixes:
        assert list(samples_of(write(tmp_path / f"x{suffix}", packed))) == by_webdataset(data)
    url = str(tmp_path / f"x{suffixes[0]}")
    for cut in range(10, len(packed) - 30, 23):
        write(Path(url), packed[:cut])
        with pytest.raises(DataError, match="truncated|damaged"):
            list(samples_of(url))
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 255
    write(Path(url), bytes(broken))
    with pytest.raises(DataError, match=rf"x{suffixes[0]}, .*byte \d+: "):
        list(samples_of(url))


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_is_not_what_its_name_says_is_named(tmp_path: Path, packing: str) -> None:
    suffixes, compress = PACKINGS[packing]
    url = write(tmp_path / "x.tar", compress(tar(["a.txt"])))
    message = rf"x\.tar, byte 0: the file is {packing}, its name says bare tar; .*{suffixes[0]}"
    with pytest.raises(DataError, match=message):
        scan(url)
    if packing != "gzip":
        for arguments in (["index", str(tmp_path / f"x{suffixes[0]}")], ["inspect", str(tmp_path / f"x{suffixes[1]}")]):
            with pytest.raises(DataError, match=rf"{packing} cannot be read by range .*sequential=true"):
                _command(arguments)
    write(tmp_path / "y.tgz", tar(["a.txt"]))
    with pytest.raises(DataError, match=r"y\.tgz, byte 0: "):
        scan(str(tmp_path / "y.tgz"))


def _command(arguments: list[str]) -> None:
    from bigssl.data.urls import expand

    command, url = arguments
    build_index(expand([url]), Path(url).parent) if command == "index" else DatasetIndex.load(url)


def test_zstd_without_its_package_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write(tmp_path / "x.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(100))
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(DataError, match=r"x\.tar\.zst: zstd needs the package zstandard.*pip install 'bigssl\[zstd\]'"):
        list(samples_of(url))


def test_a_tar_in_another_order_is_told_how_to_be_sorted(tmp_path: Path) -> None:
    url = write(tmp_path / "x.tar", tar(["0.txt", "1.txt", "0.json", "1.json"]))
    advice = r"files are not adjacent; unpack it into a FOLDER and run `bigssl shards pack FOLDER NEW`"
    for read in (lambda: scan(url), lambda: list(samples_of(url))):
        with pytest.raises(DataError, match=advice):
            read()
    assert [advice for finding in verify(url) if "bigssl shards pack FOLDER NEW" in finding.cause]


def test_links_are_told_how_to_become_files(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        link = tarfile.TarInfo("b.txt")
        link.type, link.linkname = tarfile.LNKTYPE, "a.txt"
        made.addfile(link)
    with pytest.raises(DataError, match="'b.txt' is a hard link; .*--hard-dereference"):
        scan(write(tmp_path / "x.tar", buffer.getvalue()))


def test_a_key_of_two_shards_is_found_in_the_indexes(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", tar(["k0.txt", "k1.txt", "a2.txt"]))
    write(tmp_path / "b.tar", tar(["b0.txt", "k1.txt", "k0.txt"]))
    write(tmp_path / "c.tar", tar(["c0.txt", "c1.txt"]))
    build_index(sorted(tmp_path.glob("*.tar")), tmp_path)
    (found,) = verify(str(tmp_path))
    assert (found.shard, found.key, found.offset) == ("b.tar", "k1", 1024)
    assert "2 keys of this shard stand in a.tar too" in found.cause
    assert "1 of them with the same data" in found.cause


def test_fields_with_dots_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By WebDataset's rule these are one sample; whoever made them may have meant two."""
    write(tmp_path / "x.tar", tar(["photo.0.jpg", "photo.1.jpg"]))
    assert main(["shards", "index", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "1 samples in 1 shards, fields 0.jpg, 1.jpg" in out
    assert "a field begins at the first dot of a name; 2 fields hold more: 0.jpg, 1.jpg" in err


def test_packed_tars_and_commands_are_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = write(tmp_path / "x.tar.xz", lzma.compress(tar(["a.txt", "p/._a.txt", "b.txt"])))
    for source in (url, f"pipe:xz -dc {url}"):
        assert main(["shards", "verify", source]) == 0
        out, err = capsys.readouterr()
        assert out == "" and "left out: 1 hidden files" in err and "sound" in err
    write(tmp_path / "x.tar.xz", lzma.compress(tar(["a.txt", "b.json"])))
    assert main(["shards", "verify", url]) == 1
    assert "metadata is not JSON" in capsys.readouterr().out


def test_a_document_that_is_none_is_found(tmp_path: Path) -> None:
    """Beside a txt a json object is metadata; without one, what training reads must be text."""
    names = {"a.json": b'{"text": "fine"}', "b.json": b'{"text": null}', "c.json": b'{"text": null}', "c.txt": b"fine",
             "d.json": b'{"text": "\\ud83d"}'}  # fmt: skip
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        for name, data in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    build_index([tmp_path / "x.tar"], tmp_path)
    found = {finding.key: finding.cause for finding in verify(str(tmp_path)) if "no field" not in finding.cause}
    assert set(found) == {"b", "d"}
    assert "no document but None" in found["b"] and "half of a surrogate pair" in found["d"]
