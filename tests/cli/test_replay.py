"""`bigssl shards replay`: one global order for every world, its stand-ins, and the ledger of real runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from bigssl.cli.main import main
from bigssl.config.recipe import recipe_model
from bigssl.data.loading.ledger import files
from bigssl.data.shards.index import DatasetIndex, build_index
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.engine import loop, zero
from bigssl.engine.plan import preflight
from bigssl.objectives.base import config_union
from bigssl.transfer.discovery import evaluation_union

DEMO = Path(__file__).parents[2] / "bigssl" / "demo"
COUNTS = (5, 1, 13, 2, 8, 8)
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 samples in uneven shards."""
    folder, first = tmp_path_factory.mktemp("data"), 0
    for number, count in enumerate(COUNTS):
        items = [item(f"s-{n:05d}") for n in range(first, first + count)]
        pack(items, folder / f"part{number}", name=f"shard{number}")
        first += count
    build_index(sorted(folder.glob("part*/*.tar")), folder)
    return folder


def item(key: str) -> Item:
    return Item(key, key, lambda: {"txt": key.encode()})


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str]) -> Callable[..., Lines]:
    """The parsed lines of a replay with these arguments."""

    def run(*words: object) -> Lines:
        assert main(["shards", "replay", *map(str, words)]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def by_step(lines: Iterable[dict[str, Any]]) -> dict[tuple[int, str], list[str]]:
    """Keys of each step (and source), ranks in order: the global batches."""
    found: dict[tuple[int, str], list[str]] = {}
    for line in sorted(lines, key=lambda line: (line["step"], line["rank"])):
        found.setdefault((line["step"], line.get("source", "")), []).extend(line["keys"])
    return found


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_every_world_replays_one_order(data: Path, replay: Any, world: int) -> None:
    words = ("--data", data, "--batch", 24, "--seed", 5, "--steps", 37)
    want = by_step(replay(*words))
    for workers in (0, 1, 3):
        lines = replay(*words, "--world", world, "--workers", workers)
        assert [(line["step"], line["rank"]) for line in lines] == [(s, r) for s in range(37) for r in range(world)]
        assert all(set(line) == {"step", "rank", "keys"} and len(line["keys"]) == 24 // world for line in lines)
        assert by_step(lines) == want
    assert Counter(key for keys in want.values() for key in keys) == {f"s-{n:05d}": 24 for n in range(37)}


def test_it_goes_on_from_any_step(data: Path, replay: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigssl.data.order.lanes.MIXING", 4)  # or 37 samples had a lane each, and no window to choose
    words = ("--data", data, "--batch", 12, "--seed", 5, "--lanes", 4, "--window", 3)
    whole = replay(*words, "--steps", 10, "--world", 2)
    for start in range(10):
        assert replay(*words, "--from", start, "--steps", 10 - start, "--world", 2) == whole[2 * start :]
    for other in (("--lanes", 4, "--window", 1024), ("--lanes", 8, "--window", 3)):
        assert by_step(whole) != by_step(replay(*words[:-4], *other, "--steps", 10))
    far = replay(*words, "--from", 10**9, "--steps", 1)
    assert far[0]["step"] == 10**9 and len(set(far[0]["keys"])) == 12


def test_the_index_alone_gives_the_same_keys(data: Path, replay: Any) -> None:
    words = ("--data", data, "--batch", 12, "--seed", 5, "--steps", 5, "--world", 3)
    assert replay(*words, "--no-read") == replay(*words) == replay(*words, "--no-read", "--workers", 2)


def test_brace_patterns_and_single_tars(data: Path, replay: Any) -> None:
    part = data / "part2"  # pack leaves a sidecar beside each shard
    one = replay("--data", part / "shard2-000000.tar", "--batch", 13, "--seed", 0, "--steps", 1)
    assert sorted(one[0]["keys"]) == [f"s-{n:05d}" for n in range(6, 19)]
    (data / "links").mkdir()
    for number in (0, 1):
        for path in (data / f"part{number}").glob("*.tar*"):
            (data / "links" / path.name.replace("000000.tar", "x.tar")).symlink_to(path)
    pattern = replay("--data", f"{data}/links/shard{{0..1}}-x.tar", "--batch", 6, "--seed", 0, "--steps", 1)
    assert sorted(pattern[0]["keys"]) == [f"s-{n:05d}" for n in range(6)]


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, str]:
    """20 samples, one of them damaged; and its key."""
    pack([item(f"k{n:02d}") for n in range(20)], tmp_path / "d", name="d")
    _, key, members = DatasetIndex.load(tmp_path / "d").entry(7)
    tar = tmp_path / "d" / "d-000000.tar"
    content = bytearray(tar.read_bytes())
    content[members["txt"].offset] ^= 1
    tar.write_bytes(content)
    return tmp_path / "d", key


def test_damage_ends_a_replay_and_is_named(damaged: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, key = damaged
    words = ["shards", "replay", "--data", str(folder), "--batch", "4", "--seed", "0", "--steps", "5", "--workers", "1"]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert f"sample {key!r}, byte" in shown.err and "bigssl shards verify" in shown.err
    assert len(shown.out.splitlines()) < 5 and key not in shown.out  # what came before was trained on
    assert main([*words, "--no-read"]) == 0
    assert key in capsys.readouterr().out


def test_skipped_samples_have_the_same_stand_in_everywhere(damaged: Any, replay: Any) -> None:
    folder, key = damaged
    words = ("--data", folder, "--batch", 4, "--seed", 0, "--steps", 5, "--on-error", "skip")
    one = by_step(replay(*words))
    for world, workers in ((1, 2), (2, 0), (4, 3)):
        assert by_step(replay(*words, "--world", world, "--workers", workers)) == one
    keys = Counter(key for keys in one.values() for key in keys)
    assert key not in keys and sum(keys.values()) == 20 and len(keys) == 19


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "x", "--seed", "1", "--steps", "1"], "missing: --batch"),
        (["--data", "x", "--seed", "1", "--batch", "2", "--steps", "1", "a.b=c"], "takes no overrides"),
        (["--data", "/nowhere", "--seed", "1", "--batch", "2", "--steps", "1"],
         "dataset /nowhere: no such file or folder"),
        (["--config", "r.yaml", "--batch", "2", "--steps", "1"], "--batch: for --data only"),
        (["--config", "r.yaml", "--steps", "1"], "no file r.yaml"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "replay", *words]) == 2
    assert message in capsys.readouterr().err


WRONG = [["--steps", "0"], ["--from", "-1", "--steps", "1"], ["--world", "x", "--steps", "1"], []]


@pytest.mark.parametrize("words", WRONG)
def test_numbers_are_checked(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "replay", "--data", "x", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (words[0] if words else "--steps") in line and "shards replay --help" in line


def test_a_reader_may_stop_early(data: Path) -> None:
    command = f"{sys.executable} -m bigssl.cli.main shards replay --data {data}"
    command += " --batch 24 --seed 0 --steps 9999 --no-read"
    done = subprocess.run(f"{command} | head -1", shell=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and json.loads(done.stdout)["step"] == 0


TINY: dict[str, Any] = {
    "name": "tiny", "steps": 6, "precision": "fp32",
    "objective": {"name": "joint", "parts": {
        "views": {"name": "simclr", "source": "emoji", "hidden": 16, "dim": 8},
        "words": {"name": "mlm", "source": "text"},
    }},
    "backbones": {
        "image": {"type": "resnet", "size": 16, "config": {
            "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}},
        "text": {"type": "bert", "tokenizer": str(DEMO / "tokenizer.json"), "length": 16, "config": {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}},
    },
    "data": {"workers": 1, "ledger": True, "sources": {"emoji": {"url": str(DEMO / "emoji" / "train")},
                                                       "text": {"url": str(DEMO / "text" / "train"), "batch": 4}}},
    "batch": {"size": 8, "accum": 2}, "optim": {"warmup": 2}, "checkpoint": {"every": 2},
}  # fmt: skip


def test_a_recipe_with_a_mixture_and_skipping_is_one_order(tmp_path: Path, replay: Any) -> None:
    """Prepared as in a run, with networks that have no weights."""
    mix = {part: {"url": str(DEMO / "emoji" / part), "weight": 1} for part in ("train", "val")}
    changes = {"objective": TINY["objective"]["parts"]["views"], "backbones": {"image": TINY["backbones"]["image"]},
               "data": {"on_error": "skip", "sources": {"emoji": {"mix": mix}}}}  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(TINY | changes))
    words = ("--config", path, "batch.size=16", "--steps", 2, "--from", 7)
    one = replay(*words)
    assert by_step(one) == by_step(replay(*words, "--world", 4, "--workers", 2))
    assert all(set(line) == {"step", "rank", "keys"} for line in one)
    assert Counter(key.split("/")[0] for line in one for key in line["keys"]) == {"train": 16, "val": 16}


def train(out: Path, die_before: int) -> None:
    """Trains the tiny recipe; ends this process, as a kill would, when step `die_before` is about to be logged."""
    recipe = recipe_model(config_union(), evaluation_union()).model_validate({**TINY, "out": str(out)})
    plan = preflight.plan(recipe, preflight.announced_world())
    record = loop._Run._record

    def dying(run: Any, done: int, *rest: Any) -> None:
        if done == die_before + 1:
            os._exit(0)
        record(run, done, *rest)

    loop._Run._record = dying  # type: ignore[method-assign]
    loop.train(recipe, plan, zero.start(), None)


def killed(out: Path, die_before: int) -> None:
    """`train` in a child, so that this process goes on to report."""
    child = os.fork()
    if child == 0:
        train(out, die_before)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def ledger(out: Path) -> Lines:
    return [json.loads(line) for path in files(out).values() for line in path.read_text().splitlines()]


@pytest.mark.distributed
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_the_ledger_of_a_killed_run_is_the_replay(
    before: int, after: int, tmp_path: Path, ranks: Any, replay: Any
) -> None:
    """Killed in step 5, after checkpoint 4, and gone on with another number of ranks: each step stands there once."""
    out = tmp_path / "run"
    ranks(killed, before, out, 5)
    assert max(line["step"] for line in ledger(out)) == 5
    with (out / "ledger-rank0.jsonl").open("a") as file:
        file.write('{"step": 6, "rank": 0, "ke')
    ranks(train, after, out, 99)
    for world in (1, 2):
        lines = replay("--config", out / "config.yaml", "--world", world, "--workers", 1, "--steps", 6)
        steps = range(4) if world == before else range(4, 6)
        mine = [line for line in ledger(out) if line["step"] in steps]
        order = [(line["step"], line["rank"], line["source"]) for line in lines if line["step"] in steps]
        mine.sort(key=lambda line: (line["step"], line["rank"], line["source"]))
        assert [(line["step"], line["rank"], line["source"]) for line in mine] == order
        assert mine == [line for line in lines if line["step"] in steps]
        assert by_step(ledger(out)) == by_step(lines)
    assert {len(keys) for keys in by_step(lines).values()} == {8, 4}
