"""`bigssl plan`: all failures at once, each with a change that passes; a thousand ranks on paper."""

from __future__ import annotations

import json
import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigssl.cli.main import main

ROOT = Path(__file__).parents[2]
DEMO = "launch/recipes/demo.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def plan(capsys: pytest.CaptureFixture[str], config: Any, *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main(["plan", "--config", str(config), "--json", *arguments]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_demo_passes_on_four_ranks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", "--config", DEMO, "--world", "4", "--ranks-per-node", "2", f"out={tmp_path}"]) == 0
    text = capsys.readouterr().out
    for words in (
        "source emoji: 3,078 samples in 7 shards",
        "step      256 samples = 64 x 1 passes x 4 ranks",
        "12.0 steps; the run is 30.77 epochs",
        "0 samples come twice",
        "% of the class entropy of random batches",
        "stage 1*",
        "captions and emoji share 7 shards",
        "4 ranks on 2 nodes: passes",
    ):
        assert words in text, text
    assert text.startswith("4 ranks on 2 nodes: passes, ") and text.index("warning: ") < text.index("source emoji")


def test_parameter_groups_are_shown_with_what_they_get(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    groups = "optim.groups=[{pattern: views.head, lr: 3, clip: 0.5}, {pattern: text, weight_decay: 0.2}]"
    assert main(["plan", "--config", DEMO, "--world", "2", f"out={tmp_path}", groups, "optim.layer_decay=0.5"]) == 0
    text = capsys.readouterr().out
    start = text.index("parameter groups")
    rows = [line.split() for line in text[start : text.index("\n\n", start)].splitlines()[1:]]
    assert [" ".join(row) for row in rows if "views.head" in row[0]] == [
        "views.head 196,608 0.006 0.05 0.5 by its own norm",
        "views.head, not decayed 1,152 0.006 0 0.5 by its own norm",
    ]
    assert any(row[0] == "text" and row[2:] == ["0.0005", "to", "0.002", "0.2", "1"] for row in rows), rows
    counted = sum(int(word.replace(",", "")) for row in rows for word in row if word.replace(",", "").isdigit()
                  and len(word) > 2)  # fmt: skip
    assert f"trained {counted:,}" in text


def test_a_group_without_a_match_is_refused_by_plan_and_check(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    changes = ["optim.groups=[{pattern: views.haed}]", f"out={tmp_path}"]
    found = plan(capsys, DEMO, "--world", "2", *changes, status=1)
    (failure,) = found["failures"]
    assert failure.startswith("optim.groups.0.pattern: value 'views.haed' matches no trained parameter; nearest: parts")
    assert main(["config", "check", DEMO, *changes]) == 2
    assert failure in capsys.readouterr().err


def test_all_failures_are_named_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    changes = ["evaluate.images.bank=nowhere", "zero.options.overlap_com=true", "data.sources.text.min_shards=9"]
    found = plan(capsys, DEMO, "--world", "3", f"out={tmp_path}", *changes, status=1)
    failures = "\n".join(found["failures"])
    for words in (
        "batch.size: value 256 is not micro 85 × accum 1 × world 3 = 255; allowed: batch.size 255, 258; or a world of",
        "evaluate.images.bank: value 'nowhere'",
        "zero.options.overlap_com",
        "data.sources.text.url: 4 shards",
    ):
        assert words in failures, failures
    assert len(found["failures"]) == 4


def test_what_the_device_and_the_disk_cannot_hold(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**30, 2**30 - 12 * 10**7, 12 * 10**7))
    demo = (DEMO, "--world", "1", "steps=1000", f"out={tmp_path}")
    found = plan(capsys, *demo, "--memory", "0.25", status=1)
    memory, disk = found["failures"]
    assert memory.startswith("zero.stage: a rank needs about 0.40") and "the device holds 0.25" in memory
    assert disk.startswith("checkpoint.keep: 3 checkpoints of 0.05 GiB")
    assert disk.endswith("smallest change: checkpoint.keep=1")
    tight = ["--memory", "0.388", "checkpoint.keep=1"]
    (failure,) = plan(capsys, *demo, *tight, status=1)["failures"]
    smaller = re.search(r"smallest change: (zero.options.reduce_bucket_size=\d+) or", failure)
    assert smaller and not plan(capsys, *demo, *tight, smaller[1])["failures"]
    own = "zero.options.reduce_bucket_size=500000000"
    (warning,) = [line for line in plan(capsys, *demo, "checkpoint.keep=1", own)["warnings"] if "zero" in line]
    assert "3.7 GiB of buckets for 0.01 GiB of gradients; leave it out" in warning
    assert not [line for line in plan(capsys, *demo, "checkpoint.keep=1")["warnings"] if "zero" in line]


def test_what_the_device_cannot_hold_before_the_first_step(paper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A ResNet-50 and its head, .10 GiB whole on each of 1,000 ranks, a thousandth and a layer where it is cut."""
    live = "zero.options.stage3_max_live_parameters=1000000"
    small = ["zero.options.reduce_bucket_size=1000000", live, "batch.accum=8", "backbones.image.size=64"]
    many = ["--world", "1000", "--memory"]
    found = plan(capsys, paper, *many, "0.09", "zero.stage=3", *small)
    assert not found["failures"] and found["memory"]["3"]["construction"] < 0.03 * 2**30
    others = [each for each in small if each != live]  # which has no effect there
    (failure,) = plan(capsys, paper, *many, "0.09", "zero.stage=2", *others, status=1)["failures"]
    assert failure.startswith("backbones: a rank holds the networks whole, before the first step, 0.10 GiB, the device")
    assert "smallest change: a larger device" in failure
    (failure,) = plan(capsys, paper, *many, "0.01", "zero.stage=3", *small, status=1)["failures"]
    assert "in slices, a layer at a time" in failure and "smallest change: a larger device" in failure


def test_a_mixture_and_training_on_the_queries(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = yaml.safe_load((ROOT / DEMO).read_text())
    recipe["data"]["sources"]["emoji"] = {
        "mix": {
            "train": {"url": "bigssl/demo/emoji/train", "weight": 3},
            "val": {"url": "bigssl/demo/emoji/val", "weight": 1},
        }
    }
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(recipe))
    found = plan(capsys, tmp_path / "mix.yaml", "--world", "4", "precision=fp32", f"out={tmp_path / 'run'}", status=1)
    mix = found["sources"]["emoji"]["mix"]
    assert mix["train"]["share"] == 0.75 and mix["train"]["epochs"] == pytest.approx(370 * 192 / 3078)
    assert found["memory"]["1"]["device"]["bf16 copies"] == 0
    (failure,) = found["failures"]  # a run is not started either: tests/config/test_recipe.py
    assert "probe.knn.queries: value 'bigssl/demo/emoji/val': " in failure and "data.sources.emoji" in failure


def test_a_recipe_that_cannot_be_read_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", DEMO, "--world", "2", "optim.lrr=1"]) == 2
    assert "nearest: lr" in capsys.readouterr().err


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    """A recipe over a manifest of 1,000 shards of 1,000 samples; there are no shards and no sidecars."""
    shards = [
        {
            "path": f"web-{i:04d}.tar", "name": f"web-{i:04d}.tar", "samples": 1000, "bytes": 10**8 + i % 7 * 10**6,
            "sha256": f"{i:064x}", "index_sha256": f"{i + 5000:064x}", "fields": ["jpg", "txt"],
        }
        for i in range(1000)
    ]  # fmt: skip
    manifest = {"format": "bigssl-index-1", "samples": 10**6, "shards": shards}
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "index.json").write_text(json.dumps(manifest))
    recipe = {
        "name": "paper", "steps": 5000, "out": str(tmp_path / "run"),
        "objective": {"name": "simclr", "source": "web", "hidden": 2048},
        "backbones": {"image": {"type": "resnet", "size": 224}},
        "data": {"workers": 4, "lanes": 8000, "sources": {"web": {"url": str(tmp_path / "web")}}},
        "batch": {"size": 8000},
        "zero": {"stage": 1, "options": {"reduce_bucket_size": 30_000_000}},
    }  # fmt: skip
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "paper.yaml"


def test_a_thousand_shards_on_a_thousand_ranks(paper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each rank reads 1/1000 of the bytes from 2 shards, a node of 8 ranks 1/125 from 9; nothing comes twice."""
    found = plan(capsys, paper, "--world", "1000")
    web, total = found["sources"]["web"], found["sources"]["web"]["bytes"]
    assert web["steps"] == 125 and web["epochs"] == 40 and web["share"] == 1 and web["repeated"] == 0
    assert web["rank_bytes"]["mean"] == pytest.approx(total / 1000)
    assert web["node_bytes"]["most"] < 1.05 * total / 125
    assert web["rank_shards"]["most"] == 2 and web["node_shards"]["most"] == 9 and web["openings"] == 2
    assert web["rank_imbalance"] < 1.05 and not found["warnings"]
    by_stage = [found["memory"][stage]["total"] for stage in "0123"]
    assert by_stage[2] <= by_stage[1] and found["parameters"]["image"] == 23_508_032


def test_lanes_that_do_not_fit_the_ranks_are_mended(paper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = plan(capsys, paper, "--world", "1000", "data.lanes=256", "batch.size=1000")
    (warning,) = bad["warnings"]
    assert "data.sources.web: a rank opens" in warning and "its share is 1.0, since 4096 lanes" in warning
    assert "data.lanes=8000 lets each keep its own" in warning


def test_the_table_and_the_warning_agree_on_whose_shards_a_rank_reads(
    paper: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 10 shards that would be its own, a rank opens 12.4, edges included, or 17.5, some of its neighbours'."""
    for size, own in ((1000, True), (300, False)):
        arguments = ["--world", "100", "data.lanes=4096", f"batch.size={size}"]
        found = plan(capsys, paper, *arguments)["sources"]["web"]
        assert found["openings"] == pytest.approx(1.24 if own else 1.75, abs=0.01) and found["own"] is own
        assert main(["plan", "--config", str(paper), *arguments]) == 0
        text = capsys.readouterr().out
        assert ("each rank reads shards of its own" in text) is own
        assert ("a rank opens 17.5 shards, its share is 10.0, since 4096 lanes, steps of 300" in text) is not own


def test_badly_mixed_batches_are_said_with_what_mends_them(paper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 50 million samples, 256 lanes cannot mix a batch of 8,000; as many lanes as samples in a batch can."""
    manifest = paper.parent / "web" / "index.json"
    raw = json.loads(manifest.read_text())
    raw["shards"] = [shard | {"samples": 50_000} for shard in raw["shards"]]
    manifest.write_text(json.dumps(raw | {"samples": 50 * 10**6}))
    bad = plan(capsys, paper, "--world", "8", "data.lanes=256", "data.shuffle_window=9")
    (warning,) = [text for text in bad["warnings"] if "entropy" in text]
    assert bad["sources"]["web"]["mixing"] < 0.9 and "data.lanes=8192" in warning
    assert main(["plan", "--config", str(paper), "--world", "8", "data.lanes=8192", "data.shuffle_window=9"]) == 0
    printed = capsys.readouterr().out
    assert not any("entropy" in line for line in printed.splitlines() if line.startswith("warning"))
    assert re.search(r"mixing +(99|100)\.\d% of the class", printed)


def test_a_source_without_an_index_is_read_by_every_rank(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    url = ROOT / "bigssl/demo/emoji/train"
    source = f"data.sources.emoji={{url: {url}, sequential: true, samples: 3074, batch: 8}}"
    found = plan(capsys, DEMO, "--world", "4", source, f"out={tmp_path}", "data.shuffle_window=4096")
    assert "emoji" not in found["sources"] and "captions" in found["sources"]
    (warning,) = [text for text in found["warnings"] if "data.sources.emoji.sequential" in text]
    assert "each of 4 ranks reads all" in warning
    assert int(re.search(r"batches have (\d+)% of the entropy", warning)[1]) > 90  # the window holds all
    found = plan(capsys, DEMO, "--world", "4", source, f"out={tmp_path}", "data.shuffle_window=8")
    (warning,) = [text for text in found["warnings"] if "data.sources.emoji.sequential" in text]
    assert int(re.search(r"batches have (\d+)% of the entropy", warning)[1]) < 30
