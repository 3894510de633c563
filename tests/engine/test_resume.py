"""What a run folder may be gone on with: data that moved, a newer bigssl, another machine; and what not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigssl.config.errors import ConfigError
from bigssl.config.places import CONFIG
from bigssl.config.recipe import Recipe, dump_recipe, load_recipe
from bigssl.engine.plan import preflight
from bigssl.engine.plan.checks import draft
from bigssl.engine.plan.facts import facts
from bigssl.engine.resume import may_change, refuse_changed_recipe, settled, taken_over

DEMO = Path(preflight.__file__).parents[2] / "demo"


def begin(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    """A run folder as `recipe` left it, with dotted `changes` to its config.yaml."""
    (recipe.folder / "checkpoints" / "step-00000002").mkdir(parents=True, exist_ok=True)
    values = yaml.safe_load(dump_recipe(recipe))
    for field, value in changes.items():
        *parents, last = field.split("__")
        here = values
        for parent in parents:
            here = here[parent]
        here.pop(last) if value is ... else here.update({last: value})
    (recipe.folder / CONFIG).write_text(yaml.safe_dump(values))
    return values


def on_paper(recipe: Recipe) -> list[str]:
    return draft(recipe, 1, per_node=8, device_bytes=None).failures


def refused(recipe: Recipe, words: str) -> None:
    """By training and by `bigssl plan`, in the same words."""
    with pytest.raises(ConfigError, match=words) as caught:
        preflight.plan(recipe, 1)
    assert on_paper(recipe) == [str(caught.value)]


@pytest.mark.distributed
def test_data_and_folder_that_moved_are_gone_on_with(tmp_path: Path, ranks: Any, recipe: Any, joint: Any, train: Any,
                                                     curve: Any) -> None:  # fmt: skip
    """The same bytes elsewhere end as if nothing had moved; other bytes are refused before anything is started."""

    def moved(place: str, out: str, steps: int) -> Recipe:
        home = tmp_path / place
        for name in ("emoji", "text"):
            shutil.copytree(DEMO / name / "train", home / name, dirs_exist_ok=True)
        shutil.copy(DEMO / "tokenizer.json", home / "tokenizer.json")
        changes = {**joint, "steps": steps, "optim": {"lr": 0.01, "schedule": "constant"}}
        changes["data"] = {"workers": 0, "sources": {"emoji": {"url": str(home / "emoji")},
                                                     "text": {"url": str(home / "text"), "batch": 4}}}  # fmt: skip
        text = {**joint["backbones"]["text"], "tokenizer": str(home / "tokenizer.json")}
        changes["backbones"] = {**joint["backbones"], "text": text}
        return recipe(tmp_path / out, **changes)  # type: ignore[no-any-return]

    ranks(train, 1, moved("here", "whole", 4))
    ranks(train, 1, moved("here", "run", 2))
    (tmp_path / "run").rename(tmp_path / "renamed")
    shutil.rmtree(tmp_path / "here")
    ranks(train, 1, moved("there", "renamed", 4))
    assert curve(tmp_path / "renamed") == curve(tmp_path / "whole")

    other = moved("there", "renamed", 6)
    tokenizer = tmp_path / "there" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"the"', '"teh"'))
    refused(other, "step-00000004 has tokenizers")
    shutil.copy(DEMO / "tokenizer.json", tokenizer)
    shutil.rmtree(tmp_path / "there" / "emoji")
    shutil.copytree(DEMO / "emoji" / "val", tmp_path / "there" / "emoji")
    refused(other, "step-00000004 has data")


@pytest.mark.distributed
def test_the_recipe_of_a_run_folder_goes_on_with_it(tmp_path: Path, ranks: Any, recipe: Any, joint: Any, train: Any,
                                                    curve: Any) -> None:  # fmt: skip
    """It loads back with what was found in it, and `bigssl plan` takes it as training does."""
    constant = {**joint, "optim": {"lr": 0.01, "schedule": "constant"}}
    ranks(train, 1, recipe(tmp_path / "whole", steps=4, **constant))
    ranks(train, 1, recipe(tmp_path / "run", steps=2, **constant))
    stored = load_recipe(tmp_path / "run" / CONFIG, ["steps=4"], type(recipe()))
    assert stored.backbones["text"].attention == "sdpa"  # which transformers chose
    assert on_paper(stored) == []
    ((outcome, _),) = ranks(train, 1, stored)
    assert outcome.step == 4 and curve(tmp_path / "run") == curve(tmp_path / "whole")


@pytest.mark.distributed
def test_groups_go_through_a_run_and_its_resume(
    tmp_path: Path, ranks: Any, recipe: Any, train: Any, curve: Any
) -> None:
    """By config.yaml and the checkpoint; the rate in the metrics is the recipe's, whatever groups make of it."""
    groups = [{"pattern": "^head", "lr": 2.0, "betas": [0.8, 0.9], "weight_decay": 0.1, "clip": 0.05}]
    optim = {"lr": 0.01, "schedule": "constant", "layer_decay": 0.5, "no_decay": ["stages.0"], "groups": groups}
    ranks(train, 1, recipe(tmp_path / "whole", steps=4, optim=optim))
    ranks(train, 1, recipe(tmp_path / "run", steps=2, optim=optim))
    ranks(train, 1, load_recipe(tmp_path / "run" / CONFIG, ["steps=4"], type(recipe())))
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert {row["optim/lr"] for row in curve(tmp_path / "run")} == {0.01}
    changed = {**optim, "groups": [{**groups[0], "clip": 0.06}]}
    with pytest.raises(ConfigError, match=r"optim.groups: .*'clip': 0.05.* before, .*'clip': 0.06.* now"):
        preflight.plan(recipe(tmp_path / "run", steps=4, optim=changed), 1)


def test_another_network_of_equal_shapes_is_refused(tmp_path: Path, recipe: Any) -> None:
    """`init_from` may be moved or left out, but it also says which activation the weights were trained for."""
    vit = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
           "patch_size": 8}  # fmt: skip

    def of(**section: Any) -> Recipe:
        image = {"type": "vit", "size": 16, **section}
        return recipe(tmp_path / "run", backbones={"image": image})  # type: ignore[no-any-return]

    for name, changes in {"here": {}, "moved": {"id2label": {0: "cat"}}, "other": {"hidden_act": "relu"}}.items():
        preflight.plan(of(config={**vit, **changes}), 1).backbones["image"].model.save_pretrained(tmp_path / name)
    first = of(init_from=str(tmp_path / "here"))
    plan = preflight.plan(first, 1)
    begin(settled(first, plan.backbones, accum=1, bf16=False), backbones__image__attention="eager")
    manifest = tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json"
    known = facts(1, 1, plan.streams, plan.backbones, plan.objective)
    manifest.write_text(json.dumps(known))
    again = preflight.plan(of(init_from=str(tmp_path / "moved")), 1)
    assert again.backbones["image"].model.config._attn_implementation == "eager"  # as the run folder has it
    other = of(init_from=str(tmp_path / "other"))
    refused(other, "step-00000002 has networks.image.hidden_act gelu, this run relu; allowed: the same")
    known["groups"] = [{"pattern": "^head", "lr": 2.0}]
    known["networks"]["image"]["hidden_act"] = "relu"
    manifest.write_text(json.dumps(known))
    refused(other, r"step-00000002 has groups \[{'pattern': '\^head', 'lr': 2.0}\], this run \[\]; allowed: the same")
    del known["groups"]  # an earlier bigssl
    del known["networks"]["image"]["hidden_act"]  # a version that did not know the field
    manifest.write_text(json.dumps(known))
    preflight.plan(other, 1)
    del known["networks"]  # an earlier bigssl
    manifest.write_text(json.dumps(known))
    preflight.plan(other, 1)


def test_a_folder_of_an_earlier_version_is_gone_on_with(tmp_path: Path, recipe: Any) -> None:
    """It lacks fields that came since, and has one that was never used and evaluations of a form that is gone."""
    near = {"task": "knn", "bank": "x", "queries": "y", "label": "z"}
    now = recipe(tmp_path / "run", evaluate={"near": near}, probe={"every": 3, "near": near})
    begin(now, data__watchdog=..., optim__final=..., objective__hidden_old=None,
          evaluate={"text": {"bank": "x", "queries": "y"}, "batch": 3}, probe={"every": 5, "bank": "x"})  # fmt: skip
    refuse_changed_recipe(now)


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ({"optim__lr": 0.5}, r"optim.lr: 0.5 before, 0.01 now"),
        ({"objective__dim": ...}, r"objective.dim: 128 before, 8 now"),  # its default is not what is asked for now
        ({"objective__queue": 4096}, r"objective.queue: 4096 before, unknown to this version"),
        ({"batch__accum": 2}, r"batch.accum: 2 before, 1 now"),
        ({"precision": "bf16"}, r"precision: 'bf16' before, 'fp32' now"),
        ({"steps": "many"}, r"config.yaml: steps"),
    ],
)
def test_what_shapes_the_curve_is_refused_by_name(
    before: dict[str, Any], words: str, tmp_path: Path, recipe: Any
) -> None:
    now = recipe(tmp_path / "run", batch={"size": 8, "accum": 1})
    begin(now, **before)
    with pytest.raises(ConfigError, match=words):
        refuse_changed_recipe(now)


def test_automatic_values_are_those_of_the_run_on_every_machine(tmp_path: Path, recipe: Any, monkeypatch: Any) -> None:
    """Found once, stored, and found again there; an explicit other value is refused."""
    muon = {"name": "muon", "lr": 0.1, "clip": 0.0}
    asked = recipe(tmp_path / "run", precision="auto", batch={"size": 8, "micro": 2}, optim=muon)
    monkeypatch.setattr(preflight, "wants_bf16", lambda recipe: recipe.precision != "fp32")  # a machine with bf16
    plan = preflight.plan(asked, 2)
    found = settled(asked, plan.backbones, accum=plan.accum, bf16=plan.bf16)
    stored = begin(found)
    assert stored["precision"] == "bf16" and stored["batch"] == {"size": 8, "micro": None, "accum": 2, "cached": False}
    assert stored["optim"]["adam_lr"] == 0.1 and stored["data"]["sources"]["emoji"]["batch"] == 8
    assert stored["out"] == str(tmp_path / "run")

    monkeypatch.setattr(preflight, "wants_bf16", lambda recipe: recipe.precision == "bf16")  # and one without
    again = preflight.plan(asked, 2)
    assert again.bf16 and (again.micro, again.accum) == (2, 2)
    assert taken_over(asked).batch.accum == 2
    with pytest.raises(ConfigError, match="batch.micro 1"):  # 4 ranks: accum stays, so micro has to follow
        preflight.plan(asked, 4)
    four = asked.model_copy(update={"batch": asked.batch.model_copy(update={"micro": 1})})
    assert preflight.plan(four, 4).accum == 2
    with pytest.raises(ConfigError, match="precision: 'bf16' before, 'fp32' now"):
        preflight.plan(asked.model_copy(update={"precision": "fp32"}), 2)


def test_the_table_of_what_may_change(recipe: Any) -> None:
    now = recipe("unused", data={"sources": {"a.b": {"url": "x", "sequential": True, "samples": 9}, "c": {"url": "y"}}})
    yes = ("data.sources.c.mix.d.url", "zero.options.reduce_bucket_size", "data.remote.storage.s3.endpoint_url")
    no = ("data.sources.a.b.url", "data.sources.c.batch", "zero.options.zero_quantized_gradients", "steps", "seed",
          "data.lanes", "data.sources.c.mix.d.weight", "backbones.image.config.tokenizers", "optim.clip",
          "optim.groups", "optim.no_decay", "optim.layer_decay")  # fmt: skip
    assert [key for key in yes if not may_change(key, now)] == []
    assert [key for key in no if may_change(key, now)] == []
