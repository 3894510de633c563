"""`bigssl evaluate` of a finished run: as it was asked for, or in another way, beside."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigssl import distributed, train
from bigssl.cli.main import main
from bigssl.config.recipe import load_recipe, recipe_model
from bigssl.engine import loop, zero
from bigssl.engine.plan import preflight
from bigssl.objectives.base import config_union
from bigssl.report.changes import Change, read_changes, write_changes
from bigssl.transfer.discovery import evaluation_union

DEMO = Path(preflight.__file__).parents[2] / "demo"
VAL = str(DEMO / "emoji" / "val")
NEAR = {"task": "knn", "bank": VAL, "queries": VAL, "label": "category", "query_limit": 20, "bank_limit": 40}
RECIPE: dict[str, Any] = {
    "name": "tiny", "steps": 2, "precision": "fp32",
    "objective": {"name": "clip", "source": "emoji", "dim": 8},
    "backbones": {
        "image": {"type": "resnet", "size": 16, "config": {
            "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}},
        "text": {"type": "bert", "length": 16, "tokenizer": "", "config": {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}},
    },
    "data": {"workers": 0, "sources": {"emoji": {"url": str(DEMO / "emoji" / "train")}}},
    "batch": {"size": 8}, "evaluate": {"near": NEAR},
}  # fmt: skip


def trained(recipe: str) -> None:
    loaded = load_recipe(recipe, [], recipe_model(config_union(), evaluation_union()))
    device = zero.start()
    plan = preflight.plan(loaded, distributed.world())
    loop.train(loaded, plan, device, None)
    train._export(loaded, plan)


@pytest.fixture(scope="module")
def run(crew: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose tokenizer is gone from where it was."""
    folder = tmp_path_factory.mktemp("evaluate")
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_bytes((DEMO / "tokenizer.json").read_bytes())
    recipe = {**RECIPE, "out": str(folder / "run")}
    recipe["backbones"]["text"]["tokenizer"] = str(tokenizer)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    crew(trained, 1, str(folder / "recipe.yaml"))
    tokenizer.unlink()
    return folder / "run"


def card(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "scorecard.json").read_text())
    return found


def test_another_evaluation_is_written_beside(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Scorecard, recipe and report, each of which says how it was made; those of the run stay to the byte."""
    assert main(["evaluate", str(run)]) == 0
    assert f"Made with {run}/config.yaml, of the export after 2 steps." in capsys.readouterr().out
    before = {name: (run / name).read_bytes() for name in ("scorecard.json", "report.html", "config.yaml")}
    assert card(run)["tasks"]["near"]["k"] == 20

    changes = ["evaluate.near.k=3", "evaluate.near.query_limit=10", "seed=4"]
    assert main(["evaluate", str(run), *changes]) == 0
    there, said = run / "evaluations" / "001", capsys.readouterr().out
    made = f"Made with {run}/config.yaml and {' '.join(changes)}, of the export after 2 steps."
    assert made in said and f"report: {there}/report.html" in said
    mine = card(there)
    assert (mine["tasks"]["near"]["k"], mine["tasks"]["near"]["queries"], mine["seed"]) == (3, 10, 4)
    assert made in mine["notes"] and made in (page := (there / "report.html").read_text()) and "k: 3" in page
    assert yaml.safe_load((there / "config.yaml").read_text())["evaluate"]["near"]["k"] == 3
    assert sorted(path.name for path in there.iterdir()) == ["config.yaml", "report.html", "scorecard.json"]

    assert main(["evaluate", str(run), "evaluate.near.k=4"]) == 0
    assert card(run / "evaluations" / "002")["tasks"]["near"]["k"] == 4
    assert main(["evaluate", str(run), "--out", str(tmp_path / "mine")]) == 0
    assert card(tmp_path / "mine")["tasks"] == card(run)["tasks"]
    assert before == {name: (run / name).read_bytes() for name in before}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.html").write_text("of another run, not scored yet")
    holds = {tmp_path / "mine": "holds config.yaml", run / "checkpoints": "holds latest",
             run / "config.yaml": "is no folder", tmp_path / "other": "holds report.html"}  # fmt: skip
    for out, words in holds.items():
        assert main(["evaluate", str(run), "--out", str(out)]) == 2
        assert f"--out: value '{out}': {words}" in (said := capsys.readouterr().err)
        assert said.endswith("allowed: a new or empty folder\n")
    assert (tmp_path / "other" / "report.html").read_text() == "of another run, not scored yet"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lr=1", "override 'optim.lr=1': .* trained; allowed: evaluate.NAME.FIELD=VALUE and seed=N, or --task"),
        ("evaluated.near.k=1", "override 'evaluated.near.k=1': the run is trained"),
        ("evaluate.near.lable=category", "evaluate.near.lable: .*nearest: label"),
        ("evaluate.near.label=categry", "evaluate.near.label: value 'categry' .*nearest: category"),
        ("evaluate.near.backbone=images", "evaluate.near.backbone: no backbone 'images'; allowed: image, text"),
        ("evaluate.near.k=41", "evaluate.near.k: value 41; allowed: <= bank_limit, 40"),
        ("evaluate.near.bank=nowhere", "evaluate.near.bank: value 'nowhere'"),
        (f"evaluate.near.queries={DEMO / 'emoji' / 'train'}", "evaluate.near.queries: .* shards are trained on"),
        ("evaluate.near=null", "evaluate: missing"),
        (f"evaluate.names={{task: zero_shot, queries: {VAL}, captions: {VAL}, label: category, heads: clap}}",
         "evaluate.names.heads: value 'clap'; allowed: clip; nearest: clip"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_refused_before_anything_is_scored(
    override: str, words: str, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in run.rglob("*"))
    monkeypatch.setattr("bigssl.transfer.scorecard.score", lambda *arguments, **options: 1 / 0)
    assert main(["evaluate", str(run), override]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert sorted(path.name for path in run.rglob("*")) == before


def test_an_evaluation_that_fails_leaves_no_folder(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bigssl.transfer.scorecard.score", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["evaluate", str(run), "--out", str(tmp_path / "mine")])
    assert not (tmp_path / "mine").exists()


@pytest.mark.distributed
def test_a_finished_run_is_extended_exported_and_evaluated_anew(
    run: Path, ranks: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """From the command line, checked beforehand by `config check` and `plan`; the same command again is a matter of
    course."""
    shutil.copytree(run, there := tmp_path / "run")
    recipe = str(run.parent / "recipe.yaml")
    longer = [f"out={there}", f"backbones.text.tokenizer={DEMO / 'tokenizer.json'}", "steps=4", "optim.lr=0.002"]
    plan = ["plan", "--config", recipe, "--world", "1"]
    for command, code in ((["config", "check", recipe], 2), (plan, 1)):
        assert main([*command, *longer]) == code
        said = "".join(capfd.readouterr())
        assert "optim.lr: 0.001 before, 0.002 now; steps: 2 before, 4 now" in said and "--change optim.lr,steps" in said
        assert main([*command, *longer, "--change", "steps,optim.lr"]) == 0
        capfd.readouterr()
    for words in ("changed on purpose: optim.lr: 0.001 up to step 2, then 0.002", ""):
        assert ranks(train.main, 1, ["--config", recipe, "--change", "steps,optim.lr", *longer]) == [0]
        out, said = capfd.readouterr()
        assert words in said and "of the export after 4 steps" in out
    changes = [Change(2, "optim.lr", 0.001, 0.002), Change(2, "steps", 2, 4)]
    assert read_changes(there) == changes and changes[0].sentence in (there / "report.html").read_text()
    steps = [json.loads(line)["step"] for line in (there / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_the_report_shows_what_changed_and_what_was_begun_with(run: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    write_changes(tmp_path, [Change(400, "optim.lr", 0.001, 0.0001), Change(400, "steps", 400, 500)])
    facts = {"folder": "runs/<a>/export", "sha256": "f" * 64, "steps": 7, "notes": ["made anew: heads of mlm"]}
    (tmp_path / "started_from.json").write_text(json.dumps(facts))
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    for words in ("optim.lr: 0.001 up to step 400, then 0.0001", "steps: 400 up to step 400, then 500",
                  "Begun with runs/&lt;a&gt;/export after 7 steps (sha256 ffffffffffff)", "made anew: heads of mlm"):
        assert words in page
