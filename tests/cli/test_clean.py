"""`bigssl shards split|stats|clean|verify` as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bigssl.cli.main import main
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Texts a to j; c repeats a, d is empty, j is not UTF-8."""
    source = tmp_path / "source"
    source.mkdir()
    for key in "abcdefghij":
        (source / f"{key}.txt").write_bytes({"c": b"text a", "d": b"-", "j": b"\xff"}.get(key, f"text {key}".encode()))
    assert run("shards", "pack", source, tmp_path / "data", "--shard-size", 4, "--jobs", 1, "--keep-order") == 0
    capsys.readouterr()
    return tmp_path / "data"


def keys(url: Path) -> str:
    return "".join(sample.key for sample in read_in_order(DatasetIndex.load(url)))


def test_clean(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in dataset.iterdir()}
    assert run("shards", "clean", dataset, tmp_path / "out", "--drop", "duplicates,empty-text") == 2
    assert "sample 'j', byte" in capsys.readouterr().err
    rules = "duplicates,empty-text,damaged"
    assert run("shards", "clean", dataset, tmp_path / "out", "--drop", rules, "--jobs", 2) == 0
    assert capsys.readouterr().out.splitlines() == [
        "RULE        SAMPLES",
        "duplicates  1",
        "empty-text  1",
        "damaged     1",
        f"3 dropped, each named in {tmp_path}/out/dropped.jsonl",
        f"{tmp_path}/out: 7 samples in 1 shards, fields txt",
    ]
    assert keys(tmp_path / "out") == "abefghi"
    report = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    assert [(line["key"], line["rule"], line["shard"]) for line in report] == [
        ("c", "duplicates", "data-000000.tar"),
        ("d", "empty-text", "data-000000.tar"),
        ("j", "damaged", "data-000002.tar"),
    ]
    assert {path.name: path.read_bytes() for path in dataset.iterdir()} == before
    assert run("shards", "clean", dataset, tmp_path / "o", "--drop", "blink") == 2
    assert "no rule 'blink'" in capsys.readouterr().err
    assert run("shards", "clean", dataset, dataset, "--drop", "damaged", "--overwrite") == 2
    assert "which is to be written" in capsys.readouterr().err


def test_texts_are_rewritten_and_dropped_by_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t").mkdir()
    for key, text in {"a": "Ｗｏｒｄ one two\r\n", "b": "Word one two", "c": "слово"}.items():
        (tmp_path / "t" / f"{key}.txt").write_bytes(text.encode())
    assert run("shards", "pack", tmp_path / "t", tmp_path / "s", "--as", "files", "--jobs", 1, "--keep-order") == 0
    capsys.readouterr()
    assert run("shards", "stats", tmp_path / "s", "--at", "few-words=3", "--script", "latin", "--jobs", 1) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert shown["few-words"].split()[1:3] == ["1", "33.33%"] and shown["few-words"].endswith("c (1)")
    assert shown["script"].split()[1] == "1" and shown["nfkc"].split()[1] == "1" and shown["cyrillic"].split()[1] == "5"
    rules = ["--drop", "script", "--script", "latin", "--rewrite", "controls,nfkc"]
    assert run("shards", "clean", tmp_path / "s", tmp_path / "o", *rules, "--jobs", 1) == 0
    out = capsys.readouterr().out
    assert "REWRITES  SAMPLES\ncontrols  1\nnfkc      1\n1 dropped, each named in" in out
    texts = [sample.fields["txt"] for sample in read_in_order(DatasetIndex.load(tmp_path / "o"))]
    assert texts == [b"Word one two\n", b"Word one two"]
    for wrong, said in (
        (["--drop", "blank", "--script", "latin"], "--script has no effect: --drop has no script"),
        (["--drop", "blank", "--at", "bullets=.5"], "--at bullets has no effect: --drop has no bullets"),
        (["--drop", "script"], "rule script needs --script NAMES"),
        (["--drop", "bullets", "--at", "bullets"], "--at bullets: is not RULE=VALUE with a number"),
        ([], "no rule is given; allowed are damaged"),
    ):
        assert run("shards", "clean", tmp_path / "s", tmp_path / "p", *wrong) == 2
        assert said in capsys.readouterr().err


def test_stats(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("shards", "stats", dataset, "--jobs", 1) == 0
    shown = capsys.readouterr()
    assert "10 samples in 3 shards" in shown.out
    assert "1 damaged samples; `bigssl shards verify" in shown.err
    assert run("shards", "stats", dataset, "--json", "--by", "txt", "--min-text", 6) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["fields"]["txt"]["duplicates"] == 1
    assert facts["rules"]["empty-text"] == {
        "meaning": "a text of fewer than 6 letters and digits", "samples": 9, "share": 0.9,
        "examples": [{"key": key, "value": 5.0} for key in "abc"],
    }  # fmt: skip
    assert facts["rules"]["duplicates"]["meaning"].endswith("in txt")


def test_split(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--part", "test=0.4", "--seed", 3, "--shard-size", 2, "--compress")
    assert run("shards", "split", dataset, tmp_path / "o", *options) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path}/o/train: ") and second.startswith(f"{tmp_path}/o/test: ")
    assert sorted(keys(tmp_path / "o/train") + keys(tmp_path / "o/test")) == sorted("abcdefghij")
    assert run("shards", "split", dataset, tmp_path / "p", "--by", "site") == 2
    assert "no field json; it has txt" in capsys.readouterr().err


def test_verify_in_several_processes_and_for_people(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in dataset.glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b"text ", b"tExt "))
    printed = []
    for jobs in (1, 3):
        assert run("shards", "verify", dataset, "--jobs", jobs) == 1
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1]
    findings = [json.loads(line) for line in printed[0].out.splitlines()]
    assert [finding["key"] for finding in findings] == list("abcefghij")
    assert all(set(finding) == {"shard", "key", "offset", "cause"} for finding in findings)
    head, first, *_, last = printed[0].err.splitlines()
    assert head.split() == ["SHARD", "KEY", "BYTE", "CAUSE"]
    assert first.split()[:3] == ["data-000000.tar", "a", "512"]
    assert last == f"{dataset}: 9 findings in 3 shards"


def test_verify_shows_people_the_first_and_counts_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(30):
        (source / f"n{number:02d}.txt").write_bytes(b"\xff")
    run("shards", "pack", source, tmp_path / "data", "--jobs", 1)
    capsys.readouterr()
    assert run("shards", "verify", tmp_path / "data", "--jobs", 1) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 30
    lines = printed.err.splitlines()
    assert lines[21:] == ["... and 10 more", "", "FINDINGS  SHARD", "      30  data-000000.tar", lines[-1]]
    assert lines[-1].endswith("30 findings in 1 shards")


def test_limits_of_the_command(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("shards", "verify", dataset, "--limit", "member_bytes=5", "--jobs", 1) == 1
    causes = [json.loads(line)["cause"] for line in capsys.readouterr().out.splitlines()]
    assert any("member 'a.txt' refused: 6 is over the limit member_bytes = 5" in cause for cause in causes)
