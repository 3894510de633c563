"""The shards that `bigssl init` makes: of which samples, where, parted how, and anew where they differ."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigssl.cli.fields import Fields
from bigssl.cli.found import found_data
from bigssl.cli.main import main
from bigssl.data.kinds.vocabularies.training import train_tokenizer
from bigssl.data.order.stream import read_in_order
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the collector


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(path: Path, texts: list[str], **columns: Any) -> str:
    lines = [{"text": text, **{name: of(n) for name, of in columns.items()}} for n, text in enumerate(texts)]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    return path.name


def texts(count: int, start: int = 0) -> list[str]:
    return [f"字{chr(0x4E00 + n)} number {n} of many" for n in range(start, start + count)]


def samples(folder: str) -> list[Sample]:
    return list(read_in_order(DatasetIndex.load(folder)))


def recipe(file: str) -> Any:
    return yaml.safe_load(Path(file).read_text())


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_a_label_that_is_asked_for_later_is_not_dropped(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shards lie there already without it; other options and other contents of equal number are seen, too."""
    data = jsonl(here / "t.jsonl", texts(60), stars=lambda n: n % 3, other=lambda n: f"wort {n}")
    assert main(["init", "mlm", data, "--text", "text"]) == 0, said(capsys)
    again = ["init", "mlm", data, "--text", "text", "--label", "stars"]
    assert main([*again, "--out", "new.yaml"]) == 2
    assert "t-shards is there already and was made with --text text, not --text text --label" in said(capsys)
    assert main([*again, "--overwrite"]) == 0, said(capsys)
    assert recipe("t-mlm.yaml")["evaluate"]["knn"]["label"] == "label"
    assert Counter(json.loads(s.fields["json"])["label"] for s in samples("t-shards/train")).keys() == {0, 1, 2}
    assert main([*again, "--overwrite"]) == 0 and "t-shards: there already, 60 samples" in capsys.readouterr().out
    jsonl(here / "t.jsonl", texts(60, 500), stars=lambda n: n % 3)
    assert main([*again, "--out", "new.yaml"]) == 2 and "60 samples of another state of t.jsonl" in said(capsys)
    assert main([*again, "--overwrite"]) == 0, said(capsys)
    assert all(" number 5" in s.fields["txt"].decode() for s in samples("t-shards/train"))


def test_a_second_recipe_has_a_tokenizer_of_its_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = jsonl(here / "t.jsonl", texts(40))
    assert main(["init", "mlm", data]) == main(["init", "mlm", data, "--out", "second.yaml"]) == 0, said(capsys)
    assert (here / "t-mlm-tokenizer.json").is_file() and recipe("second.yaml")["name"] == "second"
    assert recipe("second.yaml")["backbones"]["text"]["tokenizer"] == "second-tokenizer.json"
    (here / "second.yaml").unlink()
    assert main(["init", "mlm", data, "--out", "second.yaml"]) == 2
    assert "second-tokenizer.json exists; allowed: --tokenizer second-tokenizer.json to read it" in said(capsys)
    assert main(["init", "mlm", data, "--out", "second.yaml", "--tokenizer", "second-tokenizer.json"]) == 0


def test_a_label_that_some_samples_lack_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = jsonl(here / "t.jsonl", texts(40), stars=lambda n: n % 2 or None)
    assert main(["init", "mlm", data, "--label", "stars"]) == 2
    assert "--label: value 'stars' is empty in 20 of 40 samples, such as 't-000000'; fill it in" in said(capsys)
    assert not (here / "t-shards").exists()


def test_shards_of_somebody_else_are_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = jsonl(here / "t.jsonl", texts(30))
    assert main(["shards", "pack", data, "t-shards", "--jobs", "1"]) == 0
    assert main(["init", "mlm", data, "--overwrite"]) == 2
    assert "t-shards is there already, 30 samples, and was not made by `bigssl init`; remove it" in said(capsys)


def test_equal_samples_lie_on_one_side(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of what is packed, and of shards that are parted."""
    data = jsonl(here / "t.jsonl", [f"text {n % 25} 好" for n in range(100)], id=lambda n: n)
    assert main(["init", "mlm", data]) == 0, said(capsys)
    assert "--split val=0.2 --equal-together" in capsys.readouterr().out
    assert main(["shards", "pack", data, "mine", "--jobs", "1"]) == 0
    assert main(["init", "mlm", "mine"]) == 0, said(capsys)
    for made in ("t-shards", "mine-split"):
        train, held = ([s.fields["txt"] for s in samples(f"{made}/{part}")] for part in ("train", "val"))
        assert len(train) + len(held) == 100 and len(held) >= 4 and not set(train) & set(held)


def test_the_tokenizer_has_not_seen_what_is_held_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = jsonl(here / "t.jsonl", texts(60))
    assert main(["init", "mlm", data]) == 0, said(capsys)
    train, held = ([s.fields["txt"].decode() for s in samples(f"t-shards/{part}")] for part in ("train", "val"))
    entries = json.loads((here / "t-mlm-tokenizer.json").read_text())["model"]["vocab"]
    alone = {text[1] for text in held}
    assert alone and not alone & set(entries)
    train_tokenizer(train, 512, here / "alone.json")
    assert (here / "alone.json").read_bytes() == (here / "t-mlm-tokenizer.json").read_bytes()


@pytest.mark.parametrize("count", [60, 1000])
def test_few_groups_are_parted_or_not_held_out_with_a_word(
    count: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = jsonl(here / "both.jsonl", texts(count), side=lambda n: "cd"[n % 2])
    one = jsonl(here / "one.jsonl", texts(count), side=lambda n: "c")
    assert main(["init", "mlm", one, "--group", "{side}"]) == 0, said(capsys)
    assert "Nothing is judged at the end: the samples are of 1 groups" in (here / "one-mlm.yaml").read_text()
    assert recipe("one-mlm.yaml")["data"]["sources"]["data"]["url"] == "one-shards"
    assert main(["init", "mlm", both, "--group", "{side}"]) == 0, said(capsys)


def test_any_names_of_parts_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`dev` and `validation` both mean the part to validate on; what lies beside them is named."""
    for part, start in {"train": 0, "dev": 30, "validation": 60, "more": 90}.items():
        (here / "set" / part).mkdir(parents=True)
        for n, text in enumerate(texts(25, start)):
            (here / "set" / part / f"{n}.txt").write_text(text)
    assert main(["init", "mlm", "set"]) == 0, said(capsys)
    assert "left out: 25 files that are in none of the parts" in said(capsys)
    assert recipe("set-mlm.yaml")["data"]["sources"]["data"]["url"] == "set-shards/train"
    assert recipe("set-mlm.yaml")["evaluate"]["language"]["queries"] == "set-shards/dev"
    assert main(["init", "mlm", "set", "--overwrite"]) == 0 and "there already, 75" in capsys.readouterr().out
    shutil.rmtree(here / "set-shards" / "dev")  # as if interrupted
    assert main(["init", "mlm", "set", "--out", "again.yaml"]) == 0, said(capsys)
    assert len(samples("set-shards/dev")) == 25


def test_nothing_is_written_into_the_data(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in "ab":
        (here / "notes" / kind).mkdir(parents=True)
        for n, text in enumerate(texts(30)):
            (here / "notes" / kind / f"{n}.txt").write_text(text)
    assert main(["init", "mlm", "notes/a"]) == 0, said(capsys)
    assert (here / "a-shards").is_dir() and {path.name for path in (here / "notes").iterdir()} == {"a", "b"}
    assert main(["init", "mlm", "notes"]) == 0, said(capsys)
    monkeypatch.chdir(here / "notes")
    assert main(["init", "mlm", "."]) == 2 and "the working directory lies in the data" in said(capsys)


def test_what_no_sample_lacks_is_said_before_anything_is_packed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One odd file among hundreds, which a first look does not meet; what a system put there is none."""
    (here / "t").mkdir()
    for n, text in enumerate(texts(150)):
        (here / "t" / f"{n:03d}.txt").write_text(text)
    (here / "t" / "001.dat").write_bytes(b"1")
    (here / "t" / "Thumbs.db").write_bytes(b"1")
    (here / "t" / "desktop.ini").write_bytes(b"1")
    (here / "t" / "__MACOSX").mkdir()
    (here / "t" / "__MACOSX" / "x.txt").write_bytes(b"1")
    (here / "t" / "odd.rtf").write_bytes(b"1")
    assert main(["init", "mlm", "t"]) == 2
    assert "no texts (txt) in 1 of 151 samples, such as 'odd'; remove these samples, or add what" in said(capsys)
    assert [path.name for path in here.iterdir()] == ["t"]
    (here / "t" / "odd.rtf").unlink()
    assert main(["init", "mlm", "t"]) == 0
    assert "left out: 3 files and folders that an operating system puts beside others" in said(capsys)
    (here / "films").mkdir()
    (here / "films" / "a.mp4").write_bytes(b"1")
    (here / "films" / "b.arrow").write_bytes(b"1")
    assert main(["init", "mae", "films"]) == 2
    assert "films has nothing that a network takes (fields: arrow, mp4)" in said(capsys)
    assert not (here / "films-shards").exists()


def test_few_files_of_many_lines_are_asked_about(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("neg", "pos"):
        (here / "by-class").mkdir(exist_ok=True)
        (here / "by-class" / f"{name}.txt").write_text("\n".join(texts(50)))
    assert main(["init", "mlm", "by-class"]) == 2
    assert "2 .txt files with 49 lines each; is a file a document (--as files), or a line (--as lines" in said(capsys)
    assert main(["init", "mlm", "by-class", "--as", "lines"]) == 0
    assert recipe("by-class-mlm.yaml")["evaluate"]["knn"]["label"] == "label"


@pytest.mark.parametrize("rows, windows, held", [(600, 6, True), (150, 2, False)])
def test_windows_are_held_out_by_time_or_with_a_word(rows: int, windows: int, held: bool, here: Path) -> None:
    table = "\n".join(["load,heat", *(f"{n / 7:.3f},{n % 5}" for n in range(rows))])
    (here / "s.csv").write_text(table)
    parts = found_data("s.csv", Fields(window=96), lambda look: None, False)
    assert (parts.held, parts.train) == (("s-shards/val", "s-shards/train") if held else ("", "s-shards"))
    assert bool(parts.why) is not held and parts.look.samples >= windows - 2
    again = found_data("s.csv", Fields(window=96), lambda look: None, False)
    assert (again.train, again.held, again.why) == (parts.train, parts.held, parts.why)
