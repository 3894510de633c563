"""`bigssl ablate --parts`: a joint run and each of its parts alone, and the table that is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigssl.cli.ablate import Trained, compared, told, variants
from bigssl.cli.main import main
from bigssl.cli.recipes import model
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import load_recipe
from bigssl.engine.groups import treatments
from bigssl.engine.plan.activations import OnPaper
from bigssl.report.metrics import read_metrics

DEMO = Path("bigssl/demo").resolve()
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
RECIPE: dict[str, Any] = {
    "name": "both", "steps": 2, "precision": "fp32",
    "objective": {"name": "joint", "watch": 1, "parts": {
        "views": {"name": "simclr", "source": "pictures", "hidden": 16, "dim": 8},
        "words": {"name": "mlm", "source": "texts", "shares": "pairs"},
        "pairs": {"name": "next_sentence", "source": "texts", "weight": 0.5},
    }},
    "backbones": {
        "image": {"type": "vit", "size": 32, "config": {"patch_size": 8, **SIZES}},
        "text": {"type": "bert", "tokenizer": str(DEMO / "tokenizer.json"), "length": 32, "config": SIZES},
    },
    "data": {"workers": 0, "sources": {"pictures": {"url": str(DEMO / "emoji/train")},
                                       "texts": {"url": str(DEMO / "text/train")}}},
    "batch": {"size": 4}, "optim": {"warmup": 0},
    "evaluate": {"near": {"task": "knn", "bank": str(DEMO / "emoji/val"), "queries": str(DEMO / "emoji/val"),
                          "label": "category", "item": "code", "query_limit": 40, "bank_limit": 40},
                 "asked": {"task": "language", "backbone": "text", "bank": str(DEMO / "text/val"),
                           "queries": str(DEMO / "text/val"), "query_limit": 2}},
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "both.yaml"
    file.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return file


def test_a_part_alone_has_what_it_reads_trains_and_can_be_judged_by(recipe: Path) -> None:
    found = variants(load_recipe(recipe, [], model()))
    assert list(found) == ["joint", "views", "words", "pairs"]
    parts = {name: set(each["objective"]["parts"]) for name, each in found.items()}
    assert parts["joint"] == {"views", "words", "pairs"} and parts["words"] == {"words"}
    assert "shares" not in found["words"]["objective"]["parts"]["words"]
    assert [set(each["backbones"]) for each in found.values()] == [{"image", "text"}, {"image"}, {"text"}, {"text"}]
    assert [set(each["data"]["sources"]) for each in found.values()] == [{"pictures", "texts"}, {"pictures"}, {"texts"},
                                                                         {"texts"}]  # fmt: skip
    assert [set(each["evaluate"] or ()) for each in found.values()] == [{"near", "asked"}, {"near"}, {"asked"}, set()]
    assert all(each["steps"] == 2 and each["batch"]["size"] == 4 for each in found.values())


def test_settings_of_the_optimizer_go_with_the_parameters_that_they_are_about(recipe: Path) -> None:
    """A pattern without a match ends a run: alone, a part has none of the others' parameters."""
    together, *alone = variants(load_recipe(recipe, [
        "optim.groups=[{pattern: parts.views, lr: 0.1}, {pattern: 'parts.(words|pairs)', lr: 0.5}]",
        "optim.no_decay=[bias, words.*embeddings]"], model())).values()  # fmt: skip
    wanted = {"joint": ([0.1, 0.5], 2), "views": ([0.1], 1), "words": ([0.5], 2), "pairs": ([0.5], 1)}
    for name, values in zip(wanted, (together, *alone), strict=True):
        optim = values["optim"]
        assert ([group["lr"] for group in optim["groups"]], len(optim["no_decay"])) == wanted[name], name
        checked = model().model_validate(values)
        treatments(OnPaper(checked).objective, checked.optim)  # nothing is refused


def test_runs_are_trained_and_compared_and_the_same_command_goes_on(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = yaml.safe_load(recipe.read_text())
    del values["objective"]["parts"]["pairs"], values["objective"]["parts"]["words"]["shares"]
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    command = ["ablate", str(recipe), "--parts", "--ranks", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())
    near, asked = found["evaluations"]["near"], found["evaluations"]["asked"]
    assert set(near["means"]) == {"joint", "views"} and near["best_alone"] == "views"
    assert near["gain"] == pytest.approx(near["means"]["joint"] - near["means"]["views"])
    assert asked["gain"] == pytest.approx(asked["means"]["words"] - asked["means"]["joint"])  # nats: lower is better
    for part in ("views", "words"):
        values = [row[f"loss/{part}"] for row in read_metrics(tmp_path / "out" / f"{part}-0")]
        assert found["losses"][part]["means"][part] == pytest.approx(sum(values) / len(values))
    assert "gain of joint" in capsys.readouterr().out
    monkeypatch.setattr("bigssl.cli.ablate.train", lambda *_, **__: 1)  # nothing is left to be trained
    assert main(command) == 0
    assert json.loads((tmp_path / "out" / "ablation.json").read_text())["losses"] == found["losses"]
    for _ in range(2):  # of another recipe, which a run refuses, and refuses again
        assert main([*command, "optim.lr=0.5"]) == 1


def test_gains_are_held_against_their_errors_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {("joint", 0): 0.60, ("joint", 1): 0.64, ("a", 0): 0.50, ("a", 1): 0.52, ("b", 0): 0.30, ("b", 1): 0.30}
    row = {"stderr": 0.3, "unit": "share", "higher_is_better": True, "random_net": 0.1, "raw": None}
    monkeypatch.setattr(Trained, "scores", lambda run: {"near": row | {"trained": numbers[run.part, run.seed]}})
    ended = {"a": (1.0, 2.0), "a/inner": (3.0, 4.0)}
    monkeypatch.setattr(Trained, "losses", lambda run: ended if run.part != "b" else {})
    runs = [Trained(part, seed, tmp_path) for part, seed in numbers]
    found = compared(runs)
    near = found["evaluations"]["near"]
    assert near["best_alone"] == "a" and near["gain"] == pytest.approx(0.11)
    assert near["stderrs"]["joint"] == pytest.approx(0.02) and near["gain_stderr"] == pytest.approx(0.02236, abs=1e-5)
    assert near["means"]["b"] == pytest.approx(0.3) and near["random_net"] == 0.1
    text = "\n".join(told(found))
    assert "+0.11 ± 0.022 (gained)" in text and "62.0 %" in text
    assert found["losses"]["a/inner"]["means"] == {"joint": 3.0, "a": 3.0}
    assert found["losses"]["a"]["gain"] == 0 and "no difference" in text
    alone = {"losses": compared(runs[::2])["losses"], "evaluations": {}}
    assert "+0 (one run each, error unknown)" in "\n".join(told(alone))  # of one seed no loss has an error


@pytest.mark.parametrize(("words", "why"), [
    ([], "--parts"),
    (["--parts", "objective={name: mlm, source: texts}"], "joint"),
    (["--parts", "objective.parts.pairs.weight=0"], "objective.parts.pairs.weight: value 0, so that alone"),
    (["--parts", "objective.parts.joint={name: mlm, source: texts}"], "another name"),
])  # fmt: skip
def test_what_cannot_be_taken_apart_is_refused(
    recipe: Path, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", str(recipe), *words]) == 2
    assert why in capsys.readouterr().err


def test_a_task_by_itself_has_no_parts(recipe: Path) -> None:
    alone = load_recipe(recipe, ["objective={name: mlm, source: texts}"], model())
    with pytest.raises(ConfigError, match="allowed: joint"):
        variants(alone)
