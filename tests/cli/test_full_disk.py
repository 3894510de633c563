"""Commands on a disk without room: one line, exit code 1, and no half file under any name."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from bigssl import exits
from bigssl.cli import main

DEMO = Path(main.__file__).parents[1] / "demo"


def shards(folder: Path) -> None:
    """Of demo shards, without their index."""
    for tar in sorted((DEMO / "text" / "train").glob("*.tar.gz"))[:1]:
        (folder / tar.name).write_bytes(tar.read_bytes())


def texts(folder: Path) -> None:
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"{number} words " * 50)


def run(folder: Path) -> None:
    (folder / "config.yaml").write_text((DEMO.parents[1] / "launch" / "recipes" / "demo.yaml").read_text())
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "blind": 3.0}\n')


# what is there, the command, bytes that a file may have, and what does not fit
TEXT = str(DEMO / "text" / "train")
CASES = {
    "pack": (texts, ["shards", "pack", "IN", "OUT/x"], 9_000, "x-000000"),
    "pack --jobs": (texts, ["shards", "pack", "IN", "OUT/x", "--jobs", "2", "--shard-size", "20"], 9_000, "x-0"),
    "index": (shards, ["shards", "index", "IN/*.tar.gz", "--out", "OUT"], 300, "tar.gz.idx"),
    "clean": (shards, ["shards", "clean", TEXT, "OUT/x", "--drop", "blank"], 9_000, "x-0"),
    "tokenizer": (shards, ["tokenizer", "train", TEXT, "OUT/tokenizer.json"], 300, "tokenizer.json"),
    "report": (run, ["report", "IN"], 300, "report.html"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_named(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words, limit, name = CASES[case]
    folders = {"IN": tmp_path / "in", "OUT": tmp_path / "out"}
    for folder in folders.values():
        folder.mkdir()
    make(folders["IN"])
    there = sorted(tmp_path.rglob("*"))
    arguments = [word.replace("IN", str(folders["IN"])).replace("OUT", str(folders["OUT"])) for word in words]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        code = main.main(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("bigssl: ")]
    assert code == exits.FAILED and line.startswith(f"bigssl: disk full: {tmp_path}/") and name in line
    assert ", needs " in line and f"has {limit} bytes a file" in line
    assert sorted(tmp_path.rglob("*")) == there
