"""Packed tars: read whole from front to back or refused, whatever they are called."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bigssl.cli.main import main
from bigssl.config import limits
from bigssl.config.limits import Limits
from bigssl.data.errors import DataError
from bigssl.data.order.sequential import samples_of
from bigssl.data.shards.index import DatasetIndex, build_index, scan
from bigssl.data.tools.verify import verify

from .test_tar_contents import by_webdataset, tar, write


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


ENDS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "another tar appended": lambda a, b: a + b,
    "another tar behind the end mark": lambda a, b: a[:2560] + bytes(1024) + b,
    "two zeroed blocks in the middle": lambda a, b: a[:1024] + bytes(1024) + a[2048:],
    "one byte far behind": lambda a, b: a + bytes(2 << 20) + b"\1",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("packing", ["bare", *PACKINGS])
def test_nothing_may_stand_behind_the_end_mark(tmp_path: Path, end: str, packing: str) -> None:
    """Every other reader stops there: what follows would be lost without a word."""
    parts = [tar([f"{part}{i}.txt" for i in (0, 1, 3)]) for part in "ab"]
    parts[0] = tar([f"a{i}.txt" for i in range(3)])
    data = ENDS[end](*parts)
    suffixes, compress = PACKINGS.get(packing, ([".tar"], bytes))
    url = write(tmp_path / f"x{suffixes[0]}", compress(data))
    message = rf"{url}, byte \d+: data follows the end mark .*tar --ignore-zeros` and run `bigssl shards pack"
    with limits.applied(Limits(ratio=100_000)):
        readers = [lambda: list(samples_of(url)), lambda: list(samples_of(f"pipe:cat {url}")), lambda: scan(url)]
        for read in readers if packing in ("bare", "gzip") else readers[:2]:  # the others are not scanned
            with pytest.raises(DataError, match=message) as caught:
                read()
            assert data[caught.value.offset] != 0
            assert not any(data[caught.value.offset - 1024 : caught.value.offset])
        assert any("data follows the end mark" in finding.cause for finding in verify(url))


@pytest.mark.parametrize("packing", PACKINGS)
def test_bytes_behind_a_packed_stream_are_not_passed_over(tmp_path: Path, packing: str) -> None:
    """Zeros are padding, as behind a tar, and another stream goes on; anything else was meant to be read."""
    data = tar([f"a{i}.txt" for i in range(4)])
    suffixes, compress = PACKINGS[packing]
    streams = compress(data[:1000]) + compress(data[1000:])
    for whole in (streams, streams + bytes(7), compress(data[:1000]) + bytes(8) + compress(data[1000:]) + bytes(9000)):
        assert list(samples_of(write(tmp_path / f"x{suffixes[0]}", whole))) == by_webdataset(data)
    other = next(pack for name, (_, pack) in PACKINGS.items() if name != packing)(data)
    magic = compress(data)[:3]
    for rest in (b"x", b"garbage" * 1000, data, other, magic, bytes(5000) + b"x", compress(data)[:-9]):
        url = write(tmp_path / f"x{suffixes[0]}", streams + rest)
        for source in (url, f"pipe:cat {url}"):
            with pytest.raises(DataError, match=r"byte \d+: "):
                list(samples_of(source))
        assert any(finding.cause for finding in verify(url))


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
    message = r"y\.tgz, byte 0: the file is a bare tar, its name says gzip; rename it to \.tar$"
    for data in (tar(["a.txt"]), tar([])):
        with pytest.raises(DataError, match=message):
            scan(write(tmp_path / "y.tgz", data))
    for data in (b"neither" * 100, b"short", b""):
        with pytest.raises(DataError, match=r"z\.tar\.gz, byte 0: (the compressed stream is damaged|truncated)"):
            scan(write(tmp_path / "z.tar.gz", data))


def _command(arguments: list[str]) -> None:
    from bigssl.data.shards.urls import expand

    command, url = arguments
    build_index(expand([url]), Path(url).parent) if command == "index" else DatasetIndex.load(url)


def test_zstd_without_its_package_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write(tmp_path / "x.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(100))
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(DataError, match=r"x\.tar\.zst: zstd needs the package zstandard.*pip install 'bigssl\[zstd\]'"):
        list(samples_of(url))


def test_packed_tars_and_commands_are_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = write(tmp_path / "x.tar.xz", lzma.compress(tar(["a.txt", "p/._a.txt", "b.txt"])))
    for source in (url, f"pipe:xz -dc {url}"):
        assert main(["shards", "verify", source]) == 0
        out, err = capsys.readouterr()
        assert out == "" and "left out: 1 hidden files" in err and "sound" in err
    write(tmp_path / "x.tar.xz", lzma.compress(tar(["a.txt", "b.json"])))
    assert main(["shards", "verify", url]) == 1
    assert "metadata is not JSON" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".tar.bz2", ".txz", ".tar.zst"])
def test_a_shard_that_the_index_does_not_know_is_told_how_to_get_in(tmp_path: Path, suffix: str) -> None:
    """What is said is done here, word by word."""
    write(tmp_path / "x.tar", tar(["a.txt"]))
    build_index([tmp_path / "x.tar"], tmp_path)
    packing = next((name for name, (suffixes, _) in PACKINGS.items() if suffix in suffixes[:-1]), "")
    made = PACKINGS[packing][1] if packing else bytes
    write(tmp_path / f"my y{suffix}", made(tar(["b.txt"])))
    (found,) = verify(str(tmp_path))
    assert found.cause.startswith("the shard is not in the index; ")
    first = found.cause.split("`")[1]
    if first.startswith(packing) and packing not in ("", "gzip"):
        if shutil.which(packing) is None:
            pytest.skip(f"no {packing} here")
        subprocess.run(first, shell=True, check=True, cwd=tmp_path, capture_output=True)
    assert "run `bigssl shards index` on the folder" in found.cause
    if packing != "gzip":  # which needs flush points, as `index` says
        assert main(["shards", "index", str(tmp_path)]) == 0
        assert len(DatasetIndex.load(tmp_path)) == 2
