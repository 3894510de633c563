"""`bigssl evaluate` of a finished run: as it was asked for, or in another way, beside; and by any task, also of an
export and of a network that lies somewhere."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from bigssl import distributed, train
from bigssl.cli.main import main
from bigssl.cli.transfer.judged import Judgeable
from bigssl.cli.transfer.serving import serve
from bigssl.cli.transfer.wishes import wish_of
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import load_recipe, recipe_model
from bigssl.data.errors import DataError
from bigssl.engine import loop, zero
from bigssl.engine.plan import preflight
from bigssl.objectives.base import config_union
from bigssl.report.changes import Change, read_changes, write_changes
from bigssl.transfer.discovery import discover_evaluations, evaluation_union
from bigssl.transfer.leaving import classifier
from bigssl.transfer.tasks.class_mean import ClassMean

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


SOME = ["query_limit=40", "train_limit=60", "bank_limit=60", "seeds=2", "fractions=[0.3, 1]", "knn.k=5"]
ASKED = ["--train", str(DEMO / "emoji" / "train"), "--test", VAL, "--label", "category"]


def test_a_task_judges_a_run_its_export_and_a_network_that_lies_elsewhere_alike(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each network that fits, on shards of the command's, or those that the run's recipe knows; never over its card."""
    judged = shutil.ignore_patterns("evaluations", "scorecard.json", "report.html")  # by the tests before
    shutil.copytree(run, whole := tmp_path / "run", ignore=judged)
    shutil.copytree(run / "export" / "text", tmp_path / "alone" / "text")
    monkeypatch.chdir(tmp_path)
    words = ["--task", "linear,knn", *ASKED, *SOME]
    assert main(["evaluate", "run", *words]) == 0
    said, rows = capsys.readouterr().out, card(whole / "evaluations" / "001")["tasks"]
    assert rows.keys() == {f"{task}_{name}" for task in ("linear", "knn") for name in ("image", "text")}
    assert rows["linear_text"]["curve"][-1]["samples"] <= 60 and rows["knn_image"]["k"] == 5
    assert not (whole / "scorecard.json").exists() and "few labels: text linear probe: category\n" in said
    made = f"Made by `bigssl evaluate run {shlex.join(words)}`, of the export after 2 steps."
    assert made in card(whole / "evaluations" / "001")["notes"]
    again = yaml.safe_load((whole / "evaluations" / "001" / "config.yaml").read_text())
    assert again["evaluate"]["linear_image"]["fractions"] == [0.3, 1] and again["name"] == "tiny"

    for number, path in enumerate(("run/export", "alone/text"), 1):
        assert main(["evaluate", path, *words, "--backbone", "text"]) == 0
        there = tmp_path / "evaluations" / f"{number:03d}"
        assert {"linear": rows["linear_text"], "knn": rows["knn_text"]} == card(there)["tasks"]
        assert sorted(each.name for each in there.iterdir()) == ["config.yaml", "report.html", "scorecard.json"]
        unknown = "No recipe tells what these networks were trained on"
        assert (unknown in capsys.readouterr().out) == (path == "alone/text")
    assert yaml.safe_load((there / "config.yaml").read_text())["evaluate"].keys() == {"linear", "knn"}


def test_all_is_what_can_be_served_and_the_rest_with_its_reason(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails is named, and loses no other's rows."""

    def fail(*arguments: Any) -> None:
        raise DataError("the captions are gone")

    monkeypatch.setattr(ClassMean, "raw", fail)
    for tuned in ("finetune", "hybrid"):  # a test of their own has them, and takes its time
        monkeypatch.setattr(discover_evaluations()[tuned], "check", refuse)
    assert main(["evaluate", str(run), "--task", "all", "--out", str(tmp_path / "all"), *ASKED, *SOME]) == 1
    out, err = capsys.readouterr()
    found = card(tmp_path / "all")
    assert found["failed"] == {"class_mean": "the captions are gone"} and "class_mean failed: the captions" in err
    across = {f"retrieval/{way}" for way in ("images_to_texts", "texts_to_images")}
    judged = {f"{task}_{name}" for task in ("knn", "linear") for name in ("image", "text")}
    assert found["tasks"].keys() == {"near", "zero_shot", *judged, *across}
    near = found["tasks"]["near"]
    assert [near[name] for name in ("queries", "bank", "k")] == [40, 60, 5], "on its own shards, as was asked for"
    reasons = dict(re.findall(r"^not served: (\w+): (.*)$", out, flags=re.M))
    assert reasons.keys() == discover_evaluations().keys() - {"knn", "linear", "zero_shot", "retrieval", "class_mean"}
    for task, words in {"language": "exports no head of the kind mlm", "forecast": "there is no series backbone",
                        "ctc": "there is no audio backbone", "regress": "category is 'Smileys", "segment": "mask",
                        "finetune": "not today"}.items():  # fmt: skip
        assert words in reasons[task], (task, reasons[task])


def test_a_tuned_network_that_is_to_be_kept_is_checked_without_weights_and_lies_beside_the_card(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(What is proven of it is in tests/transfer.)"""
    monkeypatch.setattr(classifier, "prove", lambda claims, python: [Mock() for _ in claims])
    words = ["--task", "finetune", "--backbone", "image", "keep=true", "seeds=1", "fractions=[1]", "epochs=1",
             "least_steps=0", "query_limit=20", "train_limit=40"]  # fmt: skip
    assert main(["evaluate", str(run), *words, "--out", str(tmp_path / "out"), *ASKED]) == 0
    (row,) = card(tmp_path / "out")["tasks"].values()
    assert (tmp_path / "out" / row["kept"] / "model.safetensors").is_file()


WITHIN: dict[str, Any] = {"task": "linear", "train": str(DEMO / "emoji" / "train"), "queries": VAL}


@pytest.mark.parametrize(
    ("own", "words", "expected"),
    [
        ({"near": {"item": "code"}}, "k=5 label=design query_limit=9",
         {"near": {"k": 5, "label": "design", "query_limit": 9, "bank_limit": 40, "item": "code"}}),
        ({"near": {}}, "--backbone text", {"near": None, "knn": {"backbone": "text", "k": 20, "label": "category"}}),
        ({"near": {}, "lin": WITHIN | {"label": "category"}}, "seeds=1 fractions=[1]",
         {"lin": {"seeds": 1, "fractions": [1.0], "label": "category"}, "near": {"k": 20}}),
        ({"near": {}, "other": NEAR | {"label": "design"}}, "k=7",
         {"linear_image": {"label": "category"}, "linear_image_2": {"label": "design"}, "other": {"k": 7}}),
        ({"near": {}}, f"--test {VAL} --train {WITHIN['train']} --label design k=7",
         {"near": {"label": "category", "k": 7, "bank": VAL},
          "knn_image": {"label": "design", "k": 7, "bank": WITHIN["train"]}}),
        ({"near": {}}, "label=nothing", {"near": None, "knn": None}),
        # what trains networks is brief, but for what is given; the recipe's own stays as it is
        ({"own": WITHIN | {"task": "finetune", "label": "category"}}, "",
         {"own": {"train_limit": None, "seeds": 3, "epochs": 20}}),
        ({"lin": WITHIN | {"label": "category"}}, "epochs=7",
         {"lin": {"train_limit": None}, "finetune_image": {"train_limit": 512, "seeds": 2, "epochs": 7}}),
    ],
)  # fmt: skip
def test_what_is_asked_for_goes_for_the_recipes_own_evaluations_too(
    own: dict[str, Any], words: str, expected: dict[str, Any], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discover_evaluations()["linear"], "check", lambda section, seen: None)  # NEAR learns from VAL
    flags = dict(re.findall(r"--(\w+) (\S+)", words))
    given = re.findall(r"\S+=\S+", words)
    wish = wish_of("all", given, **{name: flags.get(name) for name in ("train", "test", "label", "backbone")})
    kinds = {name: discover_evaluations()[name] for name in ("knn", "linear", "finetune")}  # others take their time
    wish = dataclasses.replace(wish, tasks=kinds)
    whole = {name: fields if "task" in fields else NEAR | fields for name, fields in own.items()}
    known = {name: kinds[fields["task"]].model_validate(fields) for name, fields in whole.items()}
    judged = Judgeable.at(run)
    found = serve(wish, str(run), known, judged.towers, judged.heads)
    for name, fields in expected.items():
        assert (name in found.sections) == (fields is not None), (name, list(found.sections))
        said = {field: getattr(found.sections[name], field) for field in fields or ()}
        assert said == (fields or {}), name
    if "nothing" in words:
        assert "nothing" in found.unserved["near"]


def refuse(section: Any, seen: Any) -> None:
    raise ConfigError("not today")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--task linaer", "--task: no task 'linaer'; allowed: all, or of .*; nearest: linear"),
        ("--task linear seedz=1", "option seedz=1: no such field of linear; allowed: .*; nearest: seeds"),
        ("--task linear,knn linear.kk=1", "option linear.kk=1: no such field of linear; allowed: "),
        ("--task linear knn.k=1", "option knn...: --task names linear"),
        ("--task linear seeds=few", "--task linear: seeds: value 'few'"),
        ("--task linear seed=yes", "seed: value True; allowed: a whole number"),
        ("--task language --label x", "--label x: no such field of language"),
        ("--task linear --backbone imag", "--task linear: --backbone: no backbone 'imag'; allowed: image, text"),
        ("--task linear --test VAL", "--train: missing, the shards that linear learns from: bigssl evaluate RUN --task "
                                     "linear --train SHARDS --test SHARDS"),
        ("--task linear --train VAL", "--test: missing, the shards that linear is judged on: bigssl evaluate RUN "),
        ("--task linear --train VAL --test VAL --label category", "--test: .*/val': 2 of 2 shards are also in --train"),
        ("--task linear --train VAL --test TRAIN --label category", "--test: .*train': 7 of 7 shards are trained on"),
        ("--task linear --train TRAIN --test VAL", "--label: value 'label' is not in the metadata of .* allowed: .*"),
        ("--task linear --train TRAIN --test PROSE", "--test: .* has json, txt; allowed: .*|--label: value 'label' is"),
        ("--task linear --train nowhere --test VAL", "--train: value 'nowhere'"),
        ("--task forecast --train TRAIN --test VAL", "--backbone: no series backbone 'image'; allowed: none, there is "
                                                     "no series backbone"),
        ("--train VAL", "--train .*: --task is missing, which says what for"),
        ("--task linear evaluate.near.k=3", "option evaluate={'near': {'k': 3}}: no such field of linear"),
        ("--task zero_shot templates=[plain]", "'plain' has 0 places for a class name; allowed: one {}"),
        ("--task retrieval k=[5,1]", "--task retrieval: k: .*do not ascend"),
        ("--task retrieval view=design", "pair and view are needed"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_said_with_what_to_type(
    words: str, said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"TRAIN": str(DEMO / "emoji" / "train"), "PROSE": str(DEMO / "text" / "val"), "VAL": VAL}
    for name, place in places.items():
        words = words.replace(f" {name}", f" {place}")
    assert main(["evaluate", str(run), *words.split()]) == 2
    out, err = capsys.readouterr()
    assert not out and re.search(said.replace("RUN", str(run)), err), err
    assert not (run / "evaluations" / "009").exists()


@pytest.mark.parametrize(
    ("path", "said"),
    [("nowhere", "nowhere: no such folder"), ("file", "file: is no folder"),
     (".", "not a run folder, and no export .*; allowed: folder/net, folder/odd; what can be judged is a run folder"),
     ("folder/net", "--task: missing; folder/net has no recipe .*: bigssl evaluate folder/net --task all --train"),
     ("folder/odd", "odd/config.json: model_type 'odd' is of no modality")],
)  # fmt: skip
def test_what_holds_no_network_is_said(
    path: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, kind in (("net", "bert"), ("odd", "odd")):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "file").write_text("")
    task = ["--task", "knn", *ASKED] if path == "folder/odd" else []
    assert main(["evaluate", path, *task]) == 2
    assert re.search(said, capsys.readouterr().err)


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
