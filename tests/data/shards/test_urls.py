"""What a URL names, in recipes and commands alike: it works, or is refused by its name."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bigssl.cli.main import main
from bigssl.data.errors import DataError
from bigssl.data.order.sequential import SequentialIndex
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex, build_index
from bigssl.data.shards.leftout import HIDDEN, LeftOut
from bigssl.data.shards.urls import expand, meant, place
from bigssl.data.tools.verify import verify


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `my data` in the home folder with x-0.tar ... x-2.tar of one sample each and their index; the home
    folder is also the current one."""
    folder = tmp_path / "my data"
    folder.mkdir()
    for number in range(3):
        with tarfile.open(folder / f"x-{number}.tar", "w") as tar:
            info = tarfile.TarInfo(f"k{number}.txt")
            info.size = 5
            tar.addfile(info, io.BytesIO(b"hallo"))
    build_index(sorted(folder.glob("*.tar")), folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


URLS = [
    "{folder}", "~/my data", "$PLACE", "${{PLACE}}", "my data", "file:my data", "file:{folder}", "file://{folder}",
    "file:///{quoted}", "file://localhost{folder}", "~/my data/x-*.tar", "$PLACE/x-?.tar", "{folder}/x-[0-2].tar",
    "{folder}/x-{{0..2}}.tar", "file:my data/x-{{0,1,2}}.tar", "${{PLACE}}/x-{{0..2}}.tar",
    "~/my data/x-0.tar::$PLACE/x-1.tar::file:my data/x-2.tar", "{folder}/x-{{0..1}}.tar::my data/x-2.tar",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_every_way_to_name_shards_names_the_same(shards: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the index, as a sequential source, and by the commands."""
    url = url.format(folder=shards, quoted=str(shards)[1:].replace(" ", "%20"))
    index = DatasetIndex.load(url)
    assert [sample.key for sample in read_in_order(index)] == ["k0", "k1", "k2"]
    assert len(SequentialIndex(url, 3).shards) == 3
    assert [Path(tar).name for tar in expand([url])] == ["x-0.tar", "x-1.tar", "x-2.tar"]
    assert not list(verify(url))
    assert main(["shards", "inspect", url]) == 0
    assert main(["shards", "index", url, "--out", "again"]) == 0
    assert "3 samples in 3 shards" in capsys.readouterr().out
    assert DatasetIndex.load("again").fingerprint == index.fingerprint


REFUSED = [
    ("$NOWHERE_AT_ALL/x.tar", "environment variable NOWHERE_AT_ALL is not set; set it"),
    ("my data/y-*.tar", r"my data/y-\*\.tar: no file matches"),
    ("s3://bucket/x-*.tar", r"x-\*\.tar: `\*` is for local files; write a pattern NAME-\{000\.\.127\}\.tar"),
    ("https://u:secret@host/*.tar?sig=secret", r"https://host/\*\.tar\?…: `\*` is for local files"),
    ("a.tar::", "nothing stands on one side of `::`"),
    ("file://elsewhere/x.tar", "a file of the host 'elsewhere'; allowed is file:///PATH"),
    ("my data/x-{0..2.tar", "no pattern .*000..127"),
    ("simplecache::s3://bucket/x.tar", "chained URLs are not read"),
]


@pytest.mark.parametrize(("url", "message"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(
    shards: Path, url: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    readers: dict[str, Callable[[], object]] = {
        "by index": lambda: DatasetIndex.load(url),
        "in order": lambda: SequentialIndex(url, 3),  # which meets a backend when it reads
    }
    for reader in ["by index"] if "simplecache" in url else readers:
        with pytest.raises(DataError, match=message) as caught:
            readers[reader]()
        assert "secret" not in str(caught.value)
    assert main(["shards", "inspect", url]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bigssl: ")


ONE = [
    "http://[::1]:8000/x.tar", "http://[fe80::1]/a::b/x.tar", "s3://bucket/a::b/x.tar", "s3://bucket/a::b.tar",
    "https://host/x.tar?sig=a::b", "https://host/x.tar?name=a.tar::b.tar", "new::folder", "not/there::x.tar",
]  # fmt: skip


@pytest.mark.parametrize("url", ONE)
def test_colons_that_join_nothing_are_letters(shards: Path, url: str) -> None:
    assert meant(url) == [url]
    assert meant(f"my data/x-0.tar::{url}") == ["my data/x-0.tar", url]
    if url.endswith(".tar") and "?" not in url:
        assert meant(f"{url}::my data/x-0.tar") == [url, "my data/x-0.tar"]
    assert place(url) == url


def test_joined_parts_are_each_read_by_themselves(shards: Path) -> None:
    several = "http://[::1]/x-{0..1}.tar::~/my data/x-*.tar::https://h/y.tar?a=b.tar::c"
    local = [f"{shards}/x-{number}.tar" for number in range(3)]
    assert meant(several) == [f"http://[::1]/x-{i}.tar" for i in range(2)] + local + ["https://h/y.tar?a=b.tar::c"]
    for url in ("::a.tar", "a.tar::::b.tar"):
        with pytest.raises(DataError, match="nothing stands on one side"):
            meant(url)


@pytest.mark.parametrize("name", ["out[1]", "what?", "]x[", "new::folder"])
def test_a_folder_to_be_written_may_hold_signs_of_patterns(
    shards: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for near in ("out1", "whatX"):  # which the patterns would match
        (shards.parent / near).mkdir()
    assert main(["shards", "index", "my data", "--out", name]) == 0
    assert main(["shards", "split", "my data", f"{name}/parts", "--part", "val=0.5", "--jobs", "1"]) == 0
    assert len(DatasetIndex.load(shards.parent / name)) == 3
    assert (shards.parent / name / "parts/val/index.json").is_file()
    assert not list(shards.parent.glob("out1/*")) and not list(shards.parent.glob("whatX/*"))
    assert place("my dat*") == "my data"
    with pytest.raises(DataError, match="no file matches"):
        place("nowhere*")


def test_only_shards_can_be_joined(shards: Path) -> None:
    with pytest.raises(DataError, match="names 2 files, and .*my data is no shard"):
        DatasetIndex.load("my data::my data/x-0.tar")
    assert len(expand(["my data::my data/x-0.tar"])) == 4  # to index or to read in order, each stands for its shards


def test_a_path_that_exists_is_that_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~x.tar", "$HOME.tar", "x[1].tar", "a{0..1}.tar", "a*.tar", "b::c.tar", "d%20e.tar"):
        Path(name).write_bytes(b"")
        assert meant(name) == [name]
        assert meant(f"file:{tmp_path}/{name}") == [f"{tmp_path}/{name}"]


def test_queries_keep_their_dollars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "h")
    assert meant("https://$HOST/x-{0..1}.tar?$filter=a*") == [f"https://h/x-{i}.tar?$filter=a*" for i in range(2)]


def test_hidden_shards_of_a_folder_are_counted(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """macOS puts `._NAME` beside NAME on other file systems."""
    (shards / "._x-0.tar").write_bytes(b"\0\5\x16\7")
    left_out = LeftOut()
    assert len(expand([str(shards)], left_out=left_out)) == 3
    assert left_out.as_json() == {HIDDEN: [1, ["._x-0.tar"]]}
    said = "left out: 1 hidden files (names that begin with a dot), e.g. '._x-0.tar'"
    assert said in SequentialIndex(str(shards), 3).limits
    for command in ("index", "verify"):
        assert main(["shards", command, str(shards)]) == 0
        assert said in capsys.readouterr().err


def test_paths_of_commands_are_read_like_urls(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shards.parent / "t.txt").write_text("one\ntwo\n")
    assert main(["shards", "pack", "~/t.txt", "file:$PLACE/../out", "--jobs", "1"]) == 0
    assert len(DatasetIndex.load("~/out")) == 2
    assert main(["shards", "split", "~/my data", "~/parts", "--part", "val=0.5", "--jobs", "1"]) == 0
    assert (shards.parent / "parts/val/index.json").is_file()
    assert main(["shards", "index", "~/my data/x-0.tar", "--out", "~/one"]) == 0
    assert len(DatasetIndex.load(shards.parent / "one")) == 1
    assert main(["tokenizer", "train", "~/my data", "~/words.json"]) == 0
    assert (shards.parent / "words.json").is_file()
    for source, message in (("s3://b/x", "no local path"), ("$NOWHERE_AT_ALL", "is not set"), ("{a,b}", "2 places")):
        assert main(["shards", "pack", source, "out-2"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="names that are no text")
def test_shards_under_names_that_are_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = os.fsencode(tmp_path) + b"/gr\xfc\xdfe.tar"
    Path(os.fsdecode(path)).write_bytes(b"no tar")
    assert main(["shards", "verify", str(tmp_path)]) == 1
    assert "gr\\udcfc" in capsys.readouterr().out
