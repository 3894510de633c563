"""`bigssl shards pack` of what people's folders and tables hold: no sample is lost, merged or changed without a count
and a name."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written import fill

from bigssl.cli.main import main
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex

Samples = dict[str, dict[str, bytes]]


def run(*words: object) -> int:
    return main([str(word) for word in words])


def jpg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`pack(source, *words)` -> (samples, what was said on stderr), of a run that must succeed."""

    def packed(source: Path, *words: object) -> tuple[Samples, str]:
        folder = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        assert run("shards", "pack", source, folder, *words, "--keep-order", "--jobs", 1) == 0, capsys.readouterr().err
        samples = {sample.key: sample.fields for sample in read_in_order(DatasetIndex.load(folder))}
        return samples, capsys.readouterr().err

    return packed


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`refused(source, message, *words)`: the run ends with exit code 2 and one line that matches."""

    def check(source: Path, message: str, *words: object) -> None:
        assert run("shards", "pack", source, tmp_path / "refused", *words, "--keep-order", "--jobs", 1) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(f"^bigssl: .*{message}", line), line
        assert not (tmp_path / "refused").exists()

    return check


DOTTED = {f"photo.{i}.{kind}": f"{kind} {i}".encode() for i in range(3) for kind in ("txt", "json")}


def test_names_with_several_dots_are_never_merged(tmp_path: Path, pack, refused) -> None:
    """WebDataset's rule would make one sample of them; what they mean is asked, and either answer is followed."""
    source = fill(tmp_path / "v1.0", DOTTED | {"sub.dir/a.txt": b"plain"})
    refused(source, r"6 names hold several dots, the first is 'photo\.0\.json'; rename them, .*--pattern .*--pattern")
    samples, said = pack(source, "--pattern", "(?P<key>.+)")
    assert samples == {"sub.dir/a": {"txt": b"plain"}} | {
        f"photo_{i}": {"txt": f"txt {i}".encode(), "json": f"json {i}".encode()} for i in range(3)
    }
    assert "note: 3 keys had dots in their last part, which became _, e.g. 'photo.0', 'photo.1', 'photo.2'" in said
    samples, _ = pack(source, "--pattern", r"(?P<key>(.*/)?[^./]+)(\.(?P<field>[^/]+))?")
    assert samples["photo"] == {name.removeprefix("photo."): data for name, data in DOTTED.items()}
    assert samples["sub.dir/a"] == {"txt": b"plain"}


def test_keys_that_would_become_one_are_refused(tmp_path: Path, refused) -> None:
    source = fill(tmp_path / "s", {"a.b.txt": b"1", "a_b.json": b"2"})
    refused(source, "samples 'a.b' and 'a_b' would both be 'a_b'; rename one", "--pattern", "(?P<key>.+)")
    facts = fill(tmp_path / "t", {"a1.txt": b"1", "a1.json": b"{}"})
    refused(facts, "a second file for sample 'a1', field 'json'", "--pattern", r"(?P<key>a(?P<n>\d))")


def test_names_of_one_sample_that_disagree_are_refused(tmp_path: Path, pack, refused) -> None:
    pattern = r"(?P<key>[a-z])(_(?P<label>[a-z]+))?(-(?P<n>\d+))?"
    source = fill(tmp_path / "s", {"a_cat-0.txt": b"1", "a_dog.cls": b"2", "b.txt": b"3"})
    message = r"s/a_dog\.cls: label is 'dog', but 'cat' in .*s/a_cat-0\.txt, a file of the same sample; rename"
    refused(source, message, "--pattern", pattern)
    (source / "a_dog.cls").rename(source / "a-00.cls")
    (source / "a_cat.npy").write_bytes(b"4")
    samples, _ = pack(source, "--pattern", pattern)
    assert json.loads(samples["a"]["json"]) == {"label": "cat", "n": 0}
    (source / "a-00.cls").rename(source / "a-1.cls")
    refused(source, "n is 0, but 1 in", "--pattern", pattern)


def test_hidden_and_special_files_are_counted_and_named(tmp_path: Path, pack) -> None:
    files = {"a.txt": b"x", "b.txt": b"", ".DS_Store": b"", "p/._a.txt": b"", "p/a.txt": b"y", ".git/config": b""}
    source = fill(tmp_path / "s", files)
    os.mkfifo(source / "pipe.txt")  # to open it would wait forever
    (source / "p/c.txt").symlink_to(source / "pipe.txt")
    samples, said = pack(source)
    assert samples == {"a": {"txt": b"x"}, "b": {"txt": b""}, "p/a": {"txt": b"y"}}
    for line in (
        "left out: 2 hidden files (names that begin with a dot), e.g. '.DS_Store', 'p/._a.txt'; rename",
        "left out: 1 hidden folders with all that is in them, e.g. '.git'",
        "left out: 2 files that are no ordinary ones (pipes, sockets, devices), e.g. 'p/c.txt', 'pipe.txt'",
        "note: 1 files are empty, e.g. 'b.txt'",
    ):
        assert line in said


def test_links_are_followed_or_named(tmp_path: Path, pack, refused) -> None:
    """Folders of links are how subsets of datasets are made: a folder behind one is not left out."""
    elsewhere = fill(tmp_path / "elsewhere", {"n.txt": b"far", "deep/m.txt": b"farther"})
    source = fill(tmp_path / "s", {"a.txt": b"near"})
    (source / "link").symlink_to(elsewhere)
    (source / "b.txt").symlink_to(source / "a.txt")
    samples, _ = pack(source, "--labels", "none")
    assert samples == {"a": {"txt": b"near"}, "b": {"txt": b"near"}, "link/n": {"txt": b"far"},
                       "link/deep/m": {"txt": b"farther"}}  # fmt: skip
    (elsewhere / "deep/back").symlink_to(source)
    refused(source, "link/deep/back leads back to .*/s, a folder around it; remove the link")
    (elsewhere / "deep/back").unlink()
    (source / "c.txt").symlink_to(tmp_path / "nowhere")
    refused(source, r"c\.txt is a link to .*nowhere, which is not there; remove it")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_that_cannot_be_read_stop_the_packing(tmp_path: Path, refused) -> None:
    source = fill(tmp_path / "s", {"a.txt": b"x", "b.txt": b"y"})
    (source / "b.txt").chmod(0)
    refused(source, r"sample 'b': .*b\.txt cannot be read \(Permission denied\)")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("README", "has no extension"),
        ("a.", "has no extension"),
        ("x.y/README", "has no extension"),
        ("a._txt", "webdataset writes no field that begins with _; rename it"),
        (os.fsdecode(b"gr\xfc.txt"), r"'gr\\udcfc\.txt': its name is not UTF-8; rename it"),
        (os.fsdecode(b"a.t\xfcxt"), r"its name is not UTF-8"),
        ("__x__/a.txt", "webdataset passes over names that begin with __NAME__/"),
        ("x-000.tar", r"x-000\.tar is a tar, one of 1: .*run `bigssl shards index`"),
        ("a.TXT", "a second file for sample 'a', field 'txt'; rename one"),
    ],
)
def test_names_that_make_no_sample_are_refused(tmp_path: Path, refused, name: str, message: str) -> None:
    refused(fill(tmp_path / "s", {"a.txt": b"x", name: b"y"}), message)


def test_names_that_make_samples(tmp_path: Path, pack) -> None:
    """Also those that differ in case only, hold a line break or begin with two underscores."""
    names = ["a.txt", "A.txt", "new\nline.txt", "__v1deo.txt", "größe.txt", "q\"'`.txt", "b.PNG", "b.jpg"]
    samples, said = pack(fill(tmp_path / "s", {name: name.encode() for name in names}))
    assert {f"{key}.{field}": data for key, fields in samples.items() for field, data in fields.items()} == {
        name.replace("PNG", "png"): name.encode() for name in names
    }
    assert "note: 1 files are a second picture or sound of their sample, of which training reads one, e.g. 'b." in said


def test_other_files_beside_those_that_are_read(tmp_path: Path, pack, refused) -> None:
    files = {"a.txt": b"one\n", "b.TXT": b"two\n", "c.md": b"three", "d.txt": b"\n\n", "e.txt.gz": b""}
    samples, said = pack(fill(tmp_path / "s", files), "--as", "lines", "--labels", "none")
    assert samples == {"a-000000": {"txt": b"one"}, "b-000000": {"txt": b"two"}}
    assert "left out: 2 files of another kind than the ones that are read, e.g. 'c.md', 'e.txt.gz'" in said
    assert "left out: 1 files without a line, e.g. 'd.txt'" in said
    refused(tmp_path / "s", "no samples; .*left out: 5 files of another kind", "--as", "ts")
    dotted = fill(tmp_path / "v", {"my.data.txt": b"x\n"})
    refused(dotted, r"key 'my\.data-000000' cannot name a sample", "--as", "lines")


LINES = [
    ('{"text": "broken \\ud83d here"}', r"line 2: field 'text' holds \\ud83d, half of a surrogate pair"),
    ('{"text": null}', "line 2: field 'text' is null; a text is needed"),
    ('{"text": 7}', "line 2: field 'text' is 7; a text is needed"),
    ('{"text": NaN}', "line 2: field 'text' is NaN; a text is needed"),
    ('{"text": true}', "line 2: field 'text' is true"),
    ('{"text": ["a"]}', r'line 2: field \'text\' is \["a"\]'),
    ('{"other": "a"}', "line 2: no field 'text'; it has other"),
    ('{"text": "a", "text": "b"}', "line 2: not JSON .the name 'text' stands twice"),
    ('"just text"', "line 2: a JSON str, an object is needed"),
    ('{"text": "cut', "line 2: not JSON"),
    ("{\"text\": \"gr\udcfc\"}", r"line 2: not UTF-8: byte 12 is 0xfc; convert it"),
]


@pytest.mark.parametrize(("line", "message"), LINES)
def test_a_text_that_is_none_is_named_with_its_line(tmp_path: Path, refused, line: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "fine"}\n' + line.encode("utf-8", "surrogateescape") + b"\n")
    refused(tmp_path / "x.jsonl", message)


def test_other_fields_may_be_what_they_are(tmp_path: Path, pack, refused) -> None:
    records = [{"id": i, "title": f"t{i}", "text": f"x{i}", "bad": "\ud83d", "n": [i, None]} for i in range(2)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    samples, _ = pack(tmp_path / "x.jsonl", "--text", "{title} ({id})", "--key", "id", "--meta", "n")
    assert samples["1"] == {"txt": b"t1 (1)", "json": b'{"n":[1,null]}'}
    refused(tmp_path / "x.jsonl", "line 1: field 'bad' holds .*ud83d", "--meta", "bad")
    refused(tmp_path / "x.jsonl", r"'\{id' is no template", "--text", "{id")
    (tmp_path / "y.jsonl").write_text('{"id": "a", "text": "1"}\n\n{"id": "a", "text": "2"}\n')
    refused(tmp_path / "y.jsonl", r"line 3: key 'a' occurs twice in the source \(first in line 1\)", "--key", "id")


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_marks_and_line_ends_are_no_text(tmp_path: Path, pack, refused, end: bytes) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "x.txt").write_bytes(mark + "größe".encode() + end + b" two " + end + b"last")
    assert [fields["txt"] for fields in pack(tmp_path / "x.txt")[0].values()] == ["größe".encode(), b" two ", b"last"]
    (tmp_path / "x.jsonl").write_bytes(mark + b'{"text": "a"}' + end)
    assert list(pack(tmp_path / "x.jsonl")[0].values()) == [{"txt": b"a"}]
    (tmp_path / "x.csv").write_bytes(mark + b"1,2" + end + b"3,4" + end)
    (fields,) = pack(tmp_path / "x.csv", "--as", "series")[0].values()
    np.testing.assert_array_equal(np.load(io.BytesIO(fields["npy"])), [[1, 2], [3, 4]])
    (tmp_path / "y.txt").write_bytes(b"fine" + end + "größe".encode("latin-1"))
    refused(tmp_path / "y.txt", r"y\.txt, line 2: not UTF-8: byte 2 is 0xf6; convert it")
    (tmp_path / "w.txt").write_bytes(b"one\rtwo\r")
    refused(tmp_path / "w.txt", r"w\.txt has one line with carriage returns in it; `tr")
    (tmp_path / "z.txt").write_bytes("größe".encode("utf-16"))
    refused(tmp_path / "z.txt", r"z\.txt is UTF-16; convert it with `iconv")


def table(folder: Path, text: bytes, name: str = "t.csv") -> Path:
    fill(folder, {"a.jpg": jpg(), "b.jpg": jpg(), name: text})
    return folder / name


def test_tables_as_programs_write_them(tmp_path: Path, pack) -> None:
    """Long cells, line breaks and quotes in quotes, CRLF, a mark, blank lines; each row is its own sample."""
    long = "word " * 60_000
    rows = b'\xef\xbb\xbfkey,caption,file\r\nk1,"' + long.encode()
    rows += b'",a.jpg\r\n\r\nk2,"two\r\nlines, ""quoted""",b.jpg\r\n'
    samples, said = pack(table(tmp_path, rows), "--image", "file")
    assert {key: fields["txt"] for key, fields in samples.items()} == {
        "k1": long.encode(), "k2": b'two\r\nlines, "quoted"',
    }  # fmt: skip
    assert said == ""


def test_missing_captions_are_counted_and_named(tmp_path: Path, pack) -> None:
    rows = b"key,caption,file\nk1,,a.jpg\nk2,nan,a.jpg\nk3,None,b.jpg\nk4,none of them,b.jpg\n"
    samples, said = pack(table(tmp_path, rows), "--image", "file")
    assert [fields["txt"] for fields in samples.values()] == [b"", b"nan", b"None", b"none of them"]
    assert "note: 3 texts are empty or stand for a missing value, e.g. 't.csv, line 2: ', 't.csv, line 3: nan'" in said


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"k1,one,a.jpg\nk2,two\n", "line 3: 2 cells, not 3 columns as in the header"),
        (b"k1,one, two,a.jpg\n", "line 2: 4 cells, not 3 columns as in the header"),
        (b'k1,"one,a.jpg\nk2,two,b.jpg\n', r"line 2: not a row of a table \(unexpected end of data\)"),
        (b'k1,"one" more,a.jpg\n', r"line 2: not a row of a table \(.*expected after"),
        (b"\nk1,one,a.jpg\nk1,two,b.jpg\n", r"line 4: key 'k1' occurs twice in the source \(first in line 3\)"),
        (b"k.1,one,a.jpg\n", r"line 2: key 'k\.1' cannot name a sample"),
        (b",one,a.jpg\n", "line 2: key '' cannot name a sample"),
        (b'k0,"a\nb",a.jpg\nk1,gr\xfc,a.jpg\n', "line 4: not UTF-8: byte 5 is 0xfc"),
        (b"k1,one,a.heic\n", "line 2: 'a.heic' is no picture; allowed are jpg"),
        (b"k1,one,nowhere.jpg\n", r"sample 'k1': .*nowhere\.jpg cannot be read \(No such file"),
        (b"k1,one\rk2,a.jpg\n", "line 2: not a row of a table"),
    ],
)
def test_rows_that_are_none_are_named_with_their_line(tmp_path: Path, refused, rows: bytes, message: str) -> None:
    refused(table(tmp_path, b"key,caption,file\n" + rows), message, "--image", "file")


def test_tables_that_cannot_be_what_they_should(tmp_path: Path, refused) -> None:
    source = table(tmp_path, b"key,caption,file,key\nk1,one,a.jpg,k2\n")
    refused(source, "line 1: the header names 'key' twice", "--image", "file")
    source = table(tmp_path, b"key,caption,file\nk1,one,a.jpg\n")
    refused(source, "--image: the variant 'x' is given twice", "--image", "x={file}", "--image", "x={file}")
    refused(source, r"no column 'file\.x'; it has caption, file, key", "--image", "{file.x}")
    refused(source, "no template", "--image", "{}.jpg")
    source = table(tmp_path, b"key,caption,file\nk1," + b"w" * 5000 + b",a.jpg\n")
    small = ("--limit", "member_bytes=4000", "--limit", "sample_bytes=9000")
    message = "line 2, column 'caption' refused: 5000 is over the limit member_bytes"
    refused(source, message, "--image", "file", *small)
    open_quote = b'key,caption,file\nk1,"' + b"w\n" * 5000 + b",a.jpg\n"
    message = "line 2: a row of .* bytes .a quote never closed"
    refused(table(tmp_path, open_quote), message, "--image", "file", *small)


def test_sources_that_cannot_be_opened_are_one_line(tmp_path: Path, refused) -> None:
    (tmp_path / "d.csv").mkdir()
    refused(tmp_path / "d.csv", r"source .*d\.csv cannot be read \(Is a directory", "--as", "table", "--image", "file")


def test_tables_of_numbers_name_their_columns(tmp_path: Path, refused) -> None:
    for header, message in (("a,a", "column 'a' has no name of its own"), (",b", "column '' has no name of its own")):
        (tmp_path / "x.csv").write_text(f"{header}\n1,2\n")
        refused(tmp_path / "x.csv", message, "--as", "series")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4,5\n")
    refused(tmp_path / "x.csv", r"x\.csv, line 3: 3 cells, not 2 columns", "--as", "series")


def test_fields_that_no_writer_writes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shards of others may hold them: `split` would have dropped them without a word."""
    import tarfile

    for name in ("a._x", "a."):
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for member in ("a.txt", name, "b.txt"):
                tar.addfile(tarfile.TarInfo(member), io.BytesIO())
        assert run("shards", "index", tmp_path / "x.tar") == 0
        assert run("shards", "split", tmp_path, tmp_path / "out", "--part", "val=0.5", "--jobs", 1) == 2
        assert f"sample 'a': field {name[2:]!r} cannot be written" in capsys.readouterr().err
