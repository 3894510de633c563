"""Tars as people make them, read by us, by webdataset and by tarfile: every file is in a sample, or counted and named,
or the shard is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from bigssl.cli.main import main
from bigssl.data.errors import DataError
from bigssl.data.order.sequential import samples_of
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex, build_index, scan
from bigssl.data.shards.leftout import HIDDEN, META, NAMELESS, LeftOut
from bigssl.data.tools.survey import survey
from bigssl.data.tools.verify import verify

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
    assert [(s.key, s.fields) for s in read_in_order(index)] == sequential
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
    fields = {(s.key, f) for s in read_in_order(DatasetIndex.load(tmp_path)) for f in s.fields}
    assert {("__v1deo", "json"), ("__v1deo", "txt")} <= fields
    assert len(fields) + len(OUT) == len([name for name in names if not name.endswith("/")])
    assert main(["shards", "verify", str(tmp_path)]) == 1  # names stand in the place of pictures
    out, err = capsys.readouterr()
    assert "left out: 3 hidden files" in err
    assert "field 'jpg': " in out
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


def test_padding_of_zeros_is_no_damage(tmp_path: Path) -> None:
    data = tar(["a.txt"])
    for size in (0, 1, 511, 10240, 3 << 20):
        assert len(scan(write(tmp_path / "x.tar", data[:2560] + bytes(size)))[0]) == 1


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


def test_a_document_that_is_none_is_found(tmp_path: Path) -> None:
    """Beside a txt or a picture a json object is metadata; alone, what training reads must be text."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    picture = buffer.getvalue()
    names = {"a.json": b'{"text": "fine"}', "b.json": b'{"text": null}', "c.json": b'{"text": null}', "c.txt": b"fine",
             "d.json": b'{"text": "\\ud83d"}', "e.json": b'{"text": null}', "e.png": picture}  # fmt: skip
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        for name, data in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    build_index([tmp_path / "x.tar"], tmp_path)
    found = {finding.key: finding.cause for finding in verify(str(tmp_path)) if "no field" not in finding.cause}
    assert set(found) == {"b", "d"}
    damage = survey(DatasetIndex.load(tmp_path)).damage
    assert {DatasetIndex.load(tmp_path).row(number)[1].key for number in damage} == {"b", "d"}
    assert "no document but None" in found["b"] and "half of a surrogate pair" in found["d"]
