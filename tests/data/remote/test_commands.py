"""The commands on shards behind a server: verify, stats, clean and split read them as if they were local."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bigssl.cli.main import main
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.verify import verify


def run(*words: object) -> int:
    return main([str(word) for word in words])


def content(url: str) -> dict[str, dict[str, bytes]]:
    return {sample.key: sample.fields for sample in read_in_order(DatasetIndex.load(url))}


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("compress", [False, True])
def test_verify_finds_the_same(dataset, serve, jobs: int, compress: bool) -> None:
    index = dataset((3, 3, 2), compress=compress)
    folder = Path(index.url)
    server = serve(folder)
    assert list(verify(server.url, jobs)) == []
    (folder / index.shards[1].name).unlink()
    path = folder / index.shards[2].name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 8])
    local = [(f.shard, f.key) for f in verify(str(folder), jobs)]
    found = list(verify(server.url, jobs))
    assert [(f.shard, f.key) for f in found] == local
    assert (found[0].shard, found[0].cause) == (index.shards[1].name, "the shard is missing")
    assert "truncated" in found[1].cause


def test_shards_without_an_index(dataset, serve) -> None:
    index = dataset((3, 2))
    folder = Path(index.url)
    for path in [folder / "index.json", *folder.glob("*.idx")]:
        path.unlink()
    server = serve(folder)
    path = folder / index.shards[1].name
    path.write_bytes(path.read_bytes()[:1500])
    first, second = verify(f"{server.url}/shard-{{000..001}}.tar")
    assert "no index" in first.cause
    assert (second.shard, "truncated" in second.cause) == (index.shards[1].name, True)


def test_stats_clean_and_split(dataset, serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = dataset((4, 3))
    server = serve(Path(index.url))
    texts = []
    for url in (index.url, server.url):
        assert run("shards", "stats", url, "--json", "--jobs", 2) == 0
        texts.append(json.loads(capsys.readouterr().out) | {"url": ""})
    assert texts[0] == texts[1]
    assert run("shards", "clean", server.url, tmp_path / "x", "--drop", "duplicates", "--jobs", 2) == 0
    assert content(str(tmp_path / "x")) == content(index.url)
    assert run("shards", "split", server.url, tmp_path / "y", "--part", "val=0.5", "--by", "number") == 0
    assert content(str(tmp_path / "y/train")) | content(str(tmp_path / "y/val")) == content(index.url)


def test_init_reads_few_neighbours_together_and_says_how_to_part_them(
    serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for n in range(120):
        Image.new("RGB", (9, 9), (n, 2 * n, 0)).save(tmp_path / "in" / f"{n}.png")
    assert run("shards", "pack", tmp_path / "in", tmp_path / "out" / "set", "--shard-size", 20, "--jobs", 1) == 0
    server = serve(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert run("init", "mae", f"{server.url}/set/") == 0, capsys.readouterr().err
    assert (f"`bigssl shards split {server.url}/set/ set-split --part val=0.1 --equal-together` holds some out"
            in (tmp_path / "set-mae.yaml").read_text())  # fmt: skip
    asked = [path for path, _ in server.log()["requests"]]
    assert len([path for path in asked if path.endswith(".tar")]) <= 24, asked
