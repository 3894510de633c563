"""`bigssl shards pack` of every kind of source, read back by us and by webdataset."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from written import fill

from bigssl.cli.main import main
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex, build_index
from bigssl.data.tools.verify import verify

# webdataset leaves the files that it has read to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
Samples = dict[str, dict[str, bytes]]


def run(*words: object) -> int:
    return main([str(word) for word in words])


def pack(source: Path, *words: object) -> Samples:
    """Packs with the command; what we read, which webdataset reads too and `verify` finds sound."""
    folder = source.parent / f"{source.name}-out"
    assert run("shards", "pack", source, folder, *words, "--jobs", 1) == 0
    assert not list(verify(str(folder)))
    samples = content(DatasetIndex.load(folder))
    assert by_webdataset(folder) == samples
    return samples


def content(index: DatasetIndex) -> Samples:
    return {sample.key: sample.fields for sample in read_in_order(index)}


def by_webdataset(folder: Path) -> Samples:
    reader = webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False, empty_check=False)
    return {s["__key__"]: {k: v for k, v in s.items() if not k.startswith("__")} for s in reader}


def array(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data))


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def jpg(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def audio(form: str) -> bytes:
    soundfile = pytest.importorskip("soundfile")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(800) / 9), 8000, format=form)
    return buffer.getvalue()


def test_a_folder_of_pictures_and_texts_keeps_names_as_keys(tmp_path: Path) -> None:
    files = {f"n{i}.{kind}": data for i in range(5) for kind, data in (("jpg", jpg(i + 8)), ("txt", b"caption"))}
    source = fill(tmp_path / "s", files | {f"sub/{name}": data for name, data in files.items()})
    samples = pack(source, "--shard-size", 3)
    assert sorted(samples) == [f"n{i}" for i in range(5)] + [f"sub/n{i}" for i in range(5)]
    assert samples["sub/n3"] == {"jpg": files["n3.jpg"], "txt": b"caption"}
    assert len(DatasetIndex.load(tmp_path / "s-out").shards) == 4


def test_arrays_and_sound_are_stored_as_they_are(tmp_path: Path) -> None:
    files = {f"{form}.{form.lower()}": audio(form) for form in ("FLAC", "WAV", "OGG")}
    files |= {f"{form}.npy": npy(np.zeros((7, 2), np.float32)) for form in ("FLAC", "WAV", "OGG")}
    samples = pack(fill(tmp_path / "s", files))
    assert {f"{key}.{field}": data for key, fields in samples.items() for field, data in fields.items()} == files


def test_documents(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n\ntwo\n")
    assert pack(tmp_path / "t.txt") == {"t-000000": {"txt": b"one"}, "t-000001": {"txt": b"two"}}
    records = [{"id": f"d{i}", "body": f"text {i}", "text": "other", "n": i} for i in range(3)]
    (tmp_path / "j.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert pack(tmp_path / "j.jsonl", "--text", "body", "--key", "id", "--meta", "n") == {
        f"d{i}": {"txt": f"text {i}".encode(), "json": f'{{"n":{i}}}'.encode()} for i in range(3)
    }
    folder = fill(tmp_path / "f", {"a.jsonl": b'{"text": "x"}\n', "b/c.jsonl": b'{"text": "y"}\n', "README": b""})
    assert pack(folder, "--as", "jsonl") == {"a-000000": {"txt": b"x"}, "b/c-000000": {"txt": b"y"}}


def test_series(tmp_path: Path) -> None:
    rows = "a,b\n" + "".join(f"{i},{i * i}\n" for i in range(5))
    folder = fill(tmp_path / "f", {"x.csv": rows.encode(), "y/z.csv": rows.encode()})
    samples = pack(folder, "--as", "series")
    assert sorted(samples) == ["x", "y/z"]
    expected = np.array([[i, i * i] for i in range(5)], np.float32)
    np.testing.assert_array_equal(array(samples["y/z"]["npy"]), expected)
    (tmp_path / "long.csv").write_text(rows)
    windows = pack(tmp_path / "long.csv", "--as", "series", "--window", 2, "--columns", "b")
    assert sorted(windows) == [f"long-00000{i}" for i in range(3)]
    np.testing.assert_array_equal(array(windows["long-000002"]["npy"]), expected[3:, 1:])


def test_tables_take_bare_words_for_columns(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": jpg(8), "b.jpg": jpg(9)})
    (tmp_path / "t.csv").write_text('\ufefffile,words\na.jpg,"one, two"\nb.jpg,three\n', encoding="utf-8")
    samples = pack(tmp_path / "t.csv", "--image", "{file}", "--text", "words", "--key", "k{words}")
    assert {key: fields["txt"] for key, fields in samples.items()} == {"kone, two": b"one, two", "kthree": b"three"}


def make_foreign(folder: Path, samples: Samples) -> None:
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "w-%02d.tar"), maxcount=2, verbose=0) as writer:
        for key, fields in samples.items():
            writer.write({"__key__": key, **fields})


def test_webdatasets_own_shards_of_every_kind(tmp_path: Path) -> None:
    samples = {
        "a": {"npy": npy(np.ones((3, 2), np.float32)), "json": b"{}"},
        "b": {"flac": audio("FLAC"), "txt": "größe".encode()},
        "c/d": {"jpg": jpg(8), "cls": b"3"},
    }
    make_foreign(tmp_path / "w", samples)
    index = build_index(sorted((tmp_path / "w").glob("*.tar")), tmp_path / "w")
    assert content(index) == by_webdataset(tmp_path / "w") == samples
    assert run("shards", "split", tmp_path / "w", tmp_path / "o", "--part", "val=0.5", "--seed", 1) == 0
    both = [by_webdataset(tmp_path / "o" / part) for part in ("train", "val")]
    assert both[0] | both[1] == samples


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{tmp}/t.csv"], "a table needs --image, .*; a table of numbers is one with .* --as series"),
        (["{tmp}/t.csv", "--as", "series", "--text", "x"], "--text has no effect on .*t.csv, read as series"),
        (["{tmp}/t.txt", "--window", "3"], "--window has no effect on .*t.txt, read as lines; it is for series"),
        (["{tmp}/t.txt", "--as", "files"], "--as files needs a folder"),
        (["{tmp}/folder", "--as", "series"], "the source has no samples"),
        (["{tmp}/folder", "--jobs", "0"], "--jobs 0: 1 or more"),
        (["{tmp}/folder", "--limit", "member_bytes=3"], "a.txt refused: 4 is over the limit member_bytes = 3"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    fill(tmp_path, {"t.csv": b"a,b\n1,2\n", "t.txt": b"x\n", "folder/a.txt": b"text", "folder/b.txt": b"t"})
    source, *options = (word.replace("{tmp}", str(tmp_path)) for word in words)
    assert run("shards", "pack", source, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"^bigssl: .*{message}", line), line
    assert not (tmp_path / "out").exists()


def test_the_source_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = fill(tmp_path / "a/source", {"x.txt": b"text"})
    for folder in (source, tmp_path / "a"):
        assert run("shards", "pack", source, folder, "--overwrite") == 2
        assert "which is to be written; write into another folder" in capsys.readouterr().err
    assert run("shards", "pack", source, source / "out") == 0  # seen after the files of the source were listed
    assert run("shards", "pack", source, source / "out", "--overwrite") == 2
    assert "exists in the source" in capsys.readouterr().err
    assert (source / "x.txt").read_bytes() == b"text"


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("ratios=3", "extra inputs are not permitted; names are member_bytes,"),
        ("ratio=0", "greater than or equal to 1"),
        ("ratio=x", "is not NAME=VALUE with a whole number"),
        ("ratio", "is not NAME=VALUE with a whole number"),
    ],
)
def test_bad_limits_are_refused(capsys: pytest.CaptureFixture[str], limit: str, message: str) -> None:
    assert run("shards", "verify", "x", "--limit", limit) == 2
    assert message in capsys.readouterr().err


def test_an_interruption_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    source = fill(tmp_path / "s", {"a.txt": b"text"})
    with monkeypatch.context() as patch:
        patch.setattr("bigssl.data.tools.staged._write_tar", interrupt)
        assert run("shards", "pack", source, tmp_path / "out", "--jobs", 1) == 130
    assert capsys.readouterr().err == "bigssl: interrupted; the same command goes on from the finished shards\n"
    assert run("shards", "pack", source, tmp_path / "out", "--jobs", 1) == 0


def test_resuming_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path / "s", {f"n{i}.txt": b"text" for i in range(4)})
    real: Callable = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "n3.txt":
            raise OSError(5, "Input/output error", str(path))
        return real(path)

    command = ("shards", "pack", source, tmp_path / "out", "--shard-size", 2, "--jobs", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert run(*command) == 2
        assert "sample 'n3': " in capsys.readouterr().err
    assert run(*command) == 0
    assert "1 finished shards are compared with their sources" in capsys.readouterr().err
