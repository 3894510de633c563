"""`bigssl shards ...` and `bigssl tokenizer train` as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bigssl.cli.main import main
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    for number in range(10):
        (source / f"n{number}.txt").write_text(f"the text number {number}")
        (source / "sub" / f"m{number}.json").write_text("{}")
    return source


def keys(url: Path) -> list[str]:
    return [sample.key for sample in read_in_order(DatasetIndex.load(url))]


def test_pack_verify_inspect_and_index(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    assert run("shards", "pack", folder, out, "--shard-size", 8, "--keep-order") == 0
    assert capsys.readouterr().out == f"{out}: 20 samples in 3 shards, fields json, txt\n"
    assert keys(out) == sorted(keys(out)) == [f"n{i}" for i in range(10)] + [f"sub/m{i}" for i in range(10)]
    assert sorted(p.name for p in out.glob("*.tar")) == [f"shards-00000{i}.tar" for i in range(3)]
    assert run("shards", "inspect", out, "--samples", 1) == 0
    shown = capsys.readouterr().out
    assert "20 samples in 3 shards" in shown
    assert "n0  (shards-000000.tar)  txt 17 B" in shown
    for path in [*out.glob("*.idx"), out / "index.json"]:
        path.unlink()
    assert run("shards", "index", out) == 0
    assert len(keys(out)) == 20
    assert run("shards", "index", *sorted(out.glob("*.tar"))[:2], "--out", tmp_path / "other") == 0
    assert len(keys(tmp_path / "other")) == 16


def test_pack_mixes_what_is_sorted_unless_the_order_is_to_be_kept(tmp_path: Path) -> None:
    """Three folders of 60: every shard holds all of them alike; the same seed gives the same bytes."""
    source = tmp_path / "source"
    for number in range(180):
        path = source / "abc"[number // 60] / f"{number:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    packed = {
        name: pack_of(source, tmp_path / name / "x", *options)
        for name, options in {
            "one": ["--jobs", 1], "again": ["--jobs", 2], "other": ["--seed", 1], "kept": ["--keep-order"]
        }.items()
    }  # fmt: skip
    assert packed["one"] == packed["again"]
    assert packed["one"] != packed["other"]
    orders = {name: keys(tmp_path / name / "x") for name in packed}
    assert orders["kept"] == sorted(orders["one"]) == sorted(orders["other"]) and len(orders["kept"]) == 180
    for name in ("one", "other"):
        for begin in range(0, 180, 30):
            assert all(3 <= [key[0] for key in orders[name][begin : begin + 30]].count(kind) <= 18 for kind in "abc")
        ranks = [orders["kept"].index(key) for key in orders[name]]
        assert abs(np.corrcoef(ranks, range(180))[0, 1]) < 0.25  # also within the folders


def pack_of(source: Path, folder: Path, *options: object) -> dict[str, bytes]:
    assert run("shards", "pack", source, folder, "--shard-size", 60, *options) == 0
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_verify_prints_a_line_per_finding(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    run("shards", "pack", folder / "sub", out)
    capsys.readouterr()
    assert run("shards", "verify", out) == 0
    assert capsys.readouterr().out == ""
    tar = out / "shards-000000.tar"
    content = bytearray(tar.read_bytes())
    _, key, members = DatasetIndex.load(out).entry(4)
    content[members["json"].offset] ^= 1
    tar.write_bytes(bytes(content))
    assert run("shards", "verify", out) == 1
    (line,) = capsys.readouterr().out.splitlines()
    finding = json.loads(line)
    assert (finding["shard"], finding["key"], finding["offset"]) == (tar.name, key, members["json"].offset)
    assert "differs from its checksum" in finding["cause"]
    assert run("shards", "verify", tmp_path / "nowhere") == 1
    assert "nowhere: no such file or folder" in capsys.readouterr().out


def test_tables_with_variants_and_split(tmp_path: Path) -> None:
    rows = ["code\tcaption\tkind"]
    for number in range(30):
        rows.append(f"c{number}\tcaption {number}\tk")
        for variant in "xy":
            (tmp_path / f"c{number}.{variant}.png").write_bytes(b"picture")
    table = tmp_path / "t.tsv"
    table.write_text("\n".join(rows))
    images = ["--image", "x={code}.x.png", "--image", "y={code}.y.png"]
    options = ["--key", "{code}-{variant}", "--group", "{code}", "--meta", "kind", "--variant", "design"]
    assert run("shards", "pack", table, tmp_path / "o", *images, *options, "--split", "val=0.3", "--compress") == 0
    train, val = keys(tmp_path / "o/train"), keys(tmp_path / "o/val")
    assert len(train) + len(val) == 60
    assert not {key.split("-")[0] for key in train} & {key.split("-")[0] for key in val}
    (sample, *_) = read_in_order(DatasetIndex.load(tmp_path / "o/val"))
    assert json.loads(sample.fields["json"]) == {"kind": "k", "design": sample.key[-1]}
    assert sample.fields["txt"].decode() == f"caption {sample.key[1:-2]}"


def test_series_and_tokenizer(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.ts").write_text("@classLabel true x\n@data\n1,2:x\n")
    assert run("shards", "pack", tmp_path / "a.ts", tmp_path / "series") == 0
    assert keys(tmp_path / "series") == ["a-000000"]
    (tmp_path / "texts").mkdir()
    for path in folder.glob("*.txt"):
        (tmp_path / "texts" / path.name).write_bytes(path.read_bytes())
    run("shards", "pack", tmp_path / "texts", tmp_path / "t")
    capsys.readouterr()
    assert run("tokenizer", "train", tmp_path / "t", tmp_path / "tok.json", "--vocab-size", 60) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/tok.json: ")
    assert json.loads((tmp_path / "tok.json").read_text())["model"]["vocab"]["the"] > 4
    for kind, model in (("bpe", "BPE"), ("unigram", "Unigram")):
        assert run("tokenizer", "train", tmp_path / "t", tmp_path / "k.json", "--kind", kind, "--vocab-size", 300) == 0
        assert json.loads((tmp_path / "k.json").read_text())["model"]["type"] == model


def test_tokenizers_of_documents_in_json(tmp_path: Path) -> None:
    """The same text in either field, with the same tokenizer, byte for byte."""
    texts = [["the state.", "the union."], ["the end."]]
    for number, parts in enumerate(texts):
        for field, data in (("txt", " ".join(parts)), ("json", json.dumps({"sentences": parts}))):
            path = tmp_path / field / f"{number}.{field}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(data)
    for field in ("txt", "json"):
        shards, out = tmp_path / f"{field}-shards", tmp_path / f"{field}.tok"
        run("shards", "pack", tmp_path / field, shards)
        assert run("tokenizer", "train", shards, out, "--vocab-size", 60) == 0
    assert (tmp_path / "txt.tok").read_bytes() == (tmp_path / "json.tok").read_bytes()
    again = ["tokenizer", "train", tmp_path / "json-shards", tmp_path / "field.tok", "--field", "txt"]
    assert run(*again) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shards", "pack", "nowhere", "out"], "source nowhere: no such file or folder"),
        (["shards", "pack", "{tmp}/t.tsv", "{tmp}/out"], "a table needs --image"),
        (["shards", "pack", "{tmp}/x.npy", "{tmp}/out", "--as", "series"], "put x.npy into one, and pack that"),
        (["shards", "pack", "{tmp}/t.bin", "{tmp}/out"], "allowed are a folder, .csv, .jsonl, .parquet, .ts, .tsv"),
        (["shards", "inspect", "{tmp}"], "run `bigssl shards index {tmp}`"),
        (["shards", "index", "{tmp}"], "no shards"),
        (["shards", "index", "{tmp}/a/x.tar", "{tmp}/b/y.tar"], "say with --out"),
        (["tokenizer", "train", "{tmp}", "{tmp}/t.json"], "no index"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "t.tsv").write_text("a\nword\n")
    for name in ("t.bin", "x.npy"):
        (tmp_path / name).touch()
    assert run(*[word.replace("{tmp}", str(tmp_path)) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bigssl: ")
    assert message.replace("{tmp}", str(tmp_path)) in line


@pytest.mark.parametrize("split", ["val", "val=2", "train=0.1", "=0.5", "val=x"])
def test_bad_splits_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str) -> None:
    assert run("shards", "pack", tmp_path, tmp_path / "o", "--split", split) == 2
    assert "is not PART=FRACTION" in capsys.readouterr().err
