"""`bigssl export`: what is written where, what is refused, and that nothing is left of what could not be proven. That a
proof is one is in tests/transfer/leaving/test_round_trip.py."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bigssl import exits
from bigssl.cli.main import main
from bigssl.cli.transfer.public import licences, placeless, placeless_in
from bigssl.config.recipe import dump_recipe, load_recipe, recipe_model
from bigssl.data.kinds.text import load_tokenizer
from bigssl.nets.modality import MODALITIES
from bigssl.nets.towers import Tower
from bigssl.objectives import base
from bigssl.objectives.exported import rest_of_objective
from bigssl.transfer.discovery import evaluation_union
from bigssl.transfer.inputs import input_of
from bigssl.transfer.leaving import leave
from bigssl.transfer.leaving.card import INPUTS_ARE, MODALITY
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.leaving.leave import WRITERS
from bigssl.transfer.leaving.proof import Claim, Proof, ProofError

DEMO = Path(base.__file__).parents[1] / "demo"
WORDS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
RECIPE: dict[str, Any] = {
    "name": "tiny", "steps": 2,
    "objective": {"name": "joint", "parts": {
        "match": {"name": "clip", "source": "emoji", "dim": 8}, "words": {"name": "mlm", "source": "emoji"}}},
    "backbones": {
        "image": {"type": "resnet", "size": 16, "config": {
            "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}},
        "text": {"type": "bert", "length": 16, "tokenizer": str(DEMO / "tokenizer.json"), "config": WORDS}},
    "data": {"workers": 0, "sources": {"emoji": {"url": str(DEMO / "emoji" / "train")}}}, "batch": {"size": 8},
}  # fmt: skip
ROW = {"title": "image kNN", "unit": "share", "chance": 0.1, "random_net": 0.2, "raw": 0.3, "trained": 0.46,
       "verdict": "better than all"}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(RECIPE))
    recipe = load_recipe(folder / "config.yaml", [], recipe_model(base.config_union(), evaluation_union()))
    (folder / "config.yaml").write_text(dump_recipe(recipe))
    tokenizer = load_tokenizer(DEMO / "tokenizer.json")
    towers = {name: Tower(name, each, tokenizer if each.tokenizer else None)
              for name, each in recipe.backbones.items()}  # fmt: skip
    task = base.build(recipe.objective, towers)
    export_run(folder, {name: tower.model for name, tower in towers.items()},
               {name: input_of(tower) for name, tower in towers.items()}, base.exported_heads(task), {},
               rest=rest_of_objective(task, recipe.objective, towers, 2))  # fmt: skip
    (folder / "scorecard.json").write_text(json.dumps({"tasks": {"near": ROW}}))
    return folder


@pytest.fixture(autouse=True)
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[Claim]:
    """Claims, which are believed."""
    claims: list[Claim] = []

    def believe(found: Sequence[Claim], python: str) -> list[Proof]:
        claims.extend(found)
        return [Proof(each.format, "library", "1.0", each.call, len(each.samples), 0.0, 1.0, 1e-5, 7, 7, [], [], [])
                for each in found]  # fmt: skip

    monkeypatch.setattr(leave, "prove", believe)
    return claims


def test_all_that_a_format_holds_lies_below_the_folder_with_card_and_proof(
    run: Path, tmp_path: Path, proofs: list[Claim], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(run), "--format", "transformers", "--to", str(tmp_path / "left"), "--license", "mit"]
    assert main(command) == exits.DONE
    said = capsys.readouterr().out
    assert "left out: part 'match-clip'" not in said and "left out: part 'clip': no dual encoder" in said
    assert "text: AutoModelForMaskedLM.from_pretrained(\"DIR\"), 7 of 7 tensors, 8 samples differ by at most" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["left"]
    assert sorted(path.name for path in (tmp_path / "left").iterdir()) == ["image", "text"]
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "left" / "text", output_loading_info=True)
    assert not info["missing_keys"] and AutoTokenizer.from_pretrained(tmp_path / "left" / "text").model_max_length == 16
    assert json.loads((tmp_path / "left" / "text" / "proof.json").read_text())["tensors_total"] == 7
    card = (tmp_path / "left" / "text" / "README.md").read_text()
    for text in ("license: mit", "| image kNN | 10.0 % | 20.0 % | 30.0 % | 46.0 % | better than all |",
                 "type: bert", "data `emoji`: train\n", "Of the data: ATTRIBUTION.md beside `emoji`.",
                 "bigssl export run --format transformers --to left --license mit", "7 of 7 tensors"):  # fmt: skip
        assert text in card, text
    assert "`AutoTokenizer` of the same" in card and "Pictures" not in card and "AutoImageProcessor" not in card
    other = (tmp_path / "left" / "image" / "README.md").read_text()
    assert "exif_transpose" in other and "on white" in other and "AutoTokenizer" not in other
    assert str(DEMO.parent) not in card and str(run.parent) not in card and str(tmp_path) not in card
    assert len(proofs[0].samples) == 8 and proofs[0].samples[0][:2] == b"\xff\xd8", "pictures as they lie in the shards"


def test_every_card_says_how_what_its_networks_take_is_prepared() -> None:
    assert INPUTS_ARE.keys() == WRITERS.keys()
    for form, said in INPUTS_ARE.items():
        assert said.keys() == ({MODALITY[form]} if form in MODALITY else MODALITIES.keys())


def test_a_part_lies_in_the_folder_itself(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where that is a link; not in the folder that one is in, which would be another one after."""
    (tmp_path / "left").mkdir()
    (tmp_path / "link").symlink_to("left")
    command = ["export", str(run), "--format", "sentence-transformers", "--part", "clip", "--to"]
    monkeypatch.chdir(tmp_path / "left")
    assert main([*command, "."]) == exits.REFUSED
    assert "--to: value '.': cannot be replaced, being where you are; allowed: a new" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main([*command, "link"]) == exits.DONE and Path("link").is_symlink()
    modules = json.loads((tmp_path / "left" / "modules.json").read_text())
    assert [each["path"] for each in modules] == ["", "1_Pooling", "2_Dense", "3_Normalize"]


def test_a_card_names_no_folder_of_this_machine_and_no_licence_of_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in commands and addresses; licences are those that lie with the data."""
    work = tmp_path / "work"
    places = {name: work / "data" / name / "train" for name in ("bare", "known", "cloned")}
    for place in places.values():
        place.mkdir(parents=True)
    for file in ("LICENSE", "data/known/LICENSE", "data/cloned/LICENCE.txt", "data/cloned/pyproject.toml"):
        (work / file).touch()
    monkeypatch.chdir(work)
    sources = {name: [str(place)] for name, place in places.items()} | {"loose": ["data"], "far": ["s3://a/LICENSE"]}
    assert licences(sources) == ["LICENSE beside `known`"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(work))
    assert licences({"loose": [str(work / "data" / "x-{0..3}.tar")]}) == []
    for text, said in (
        ("/home/me/my data/train", "train"), ("~/x.tar", "x.tar"), ("runs/demo", "runs/demo"), ("mean/std", "mean/std"),
        ("pipe:cat /home/me/x.tar", "pipe:cat x.tar"), ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("file:///home/me/x", "x"), ("https://u:p@host/a?sig=1", "https://host/a?…"),
    ):  # fmt: skip
        assert placeless(text) == said
    assert placeless_in({"a": [{"b": "/home/me/t.json", "c": None}, 3]}) == {"a": [{"b": "t.json"}, 3]}


def test_what_cannot_be_proven_is_not_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def doubt(claims: Sequence[Claim], python: str) -> list[Proof]:
        raise ProofError("part 'text', transformers: one tensor is missing")

    monkeypatch.setattr(leave, "prove", doubt)
    assert main(["export", str(run), "--format", "transformers", "--to", str(tmp_path / "left")]) == exits.FAILED
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "bigssl: not exported: part 'text', transformers: one tensor is missing"
    assert "exported to" not in said.out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--part": "imagr"}, "--part: value 'imagr': not in the export; nearest: image; there is: clip, image, text"),
        ({"--part": "clip"}, "no dual encoder of transformers takes the means of resnet and bert"),
        ({"--part": "text", "--format": "timm"}, "timm takes networks of pictures"),
        ({"--format": "keras"}, "keras"),
        ({"--format": "onnx"}, "onnxscript not installed here; allowed: after pip install 'bigssl[onnx]'"),
        ({"--python": "no-such-python"}, "--python: value 'no-such-python': no program of this name"),
        ({"--data": str(DEMO / "series" / "italy_power" / "test")}, "no images in"),
        ({"--to": "full"}, "--to: value 'full': holds something; allowed: a new or empty folder"),
        ({"--to": "link"}, "--to: value 'link': holds something; allowed: a new or empty folder"),
        ({"run": "empty"}, "empty: no export in it"),
        ({"run": "old"}, "of an older version, or not whole"),
        ({"run": "nowhere"}, "nowhere: no such folder in"),
        ({"run": "full"}, "full: not a run folder (no config.yaml in it)"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_leave_is_refused_in_a_line(
    change: dict[str, str], said: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("full", "empty", "old/export"):
        Path(name).mkdir(parents=True)
    Path("full/something").touch()
    Path("link").symlink_to("full")
    for name in ("empty", "old"):
        shutil.copy(run / "config.yaml", name)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name == "onnxscript" else object() if name in (
                            "timm", "torchvision") else real(name, *rest))  # fmt: skip
    options = {"run": str(run), "--format": "transformers", "--to": "left"} | change
    words = [options.pop("run"), *(word for pair in options.items() for word in pair)]
    assert main(["export", *words]) == exits.REFUSED
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("bigssl: ") and said in error, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full", "link", "old"]


class ConnectError(Exception):
    """Of the hub's client: no OSError."""


class StandIn:
    """Of `huggingface_hub.HfApi`."""

    calls: list[tuple[Any, ...]] = []

    def create_repo(self, name: str, **options: Any) -> str:
        self.calls.append((name, options))
        return f"https://a.hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        if "full" in repo_id:
            raise OSError("no space")
        if "cut" in repo_id:
            raise ConnectError("no route to host")
        self.calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_it_goes_to_a_hub_only_when_asked_and_in_private(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", StandIn)
    monkeypatch.setattr(StandIn, "calls", [])
    command = ["export", str(run), "--format", "transformers", "--part", "image", "--to"]
    assert main([*command, str(tmp_path / "one")]) == 0 and not StandIn.calls
    assert main([*command, str(tmp_path / "two"), "--push", "me/tiny"]) == 0
    files = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json", "proof.json"]
    assert StandIn.calls == [("me/tiny", {"private": True, "exist_ok": True}), ("me/tiny", files)]
    assert "pushed to https://a.hub/me/tiny" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "three"), "--push", "me/full"]) == exits.FAILED
    assert "not pushed: --push: value 'me/full': no space" in capsys.readouterr().err
    assert (tmp_path / "three" / "proof.json").is_file()
    assert main([*command, str(tmp_path / "four"), "--push", "me/cut"]) == exits.FAILED
    said = capsys.readouterr().err
    assert f"--push: value 'me/cut': no route to host; {tmp_path / 'four'} is written and proven" in said
