"""A run that begins with the networks and heads of an export: what it takes, what it says, what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from byol_runs import BYOL, assert_same_state, state_by_hand, state_of, steps_by_hand
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from bigssl import distributed, train
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe, recipe_model
from bigssl.engine import loop, zero
from bigssl.engine.guards import NotSaved
from bigssl.engine.optim import build_optimizer
from bigssl.engine.plan import preflight
from bigssl.engine.plan.checks import draft
from bigssl.objectives.base import config_union
from bigssl.objectives.exported import rest_of_objective

OPTIM = {"lr": 0.01, "warmup": 1, "eps": 1e-2}


def driven(*recipes: str) -> list[list[str]]:
    """Runs (recipes as JSON), one after the other, each exported; their notes. Collective."""
    device, model = zero.start(), recipe_model(config_union())
    notes = []
    for text in recipes:
        recipe = model.model_validate_json(text)
        plan = preflight.plan(recipe, distributed.world())
        loop.train(recipe, plan, device, None)
        with contextlib.redirect_stdout(io.StringIO()):
            train._export(recipe, plan)
        distributed.barrier()
        notes.append(plan.notes)
    return notes


def by_hand(first: Recipe, second: Recipe) -> dict[str, Tensor]:
    """In one process by PyTorch alone: the weights, buffers and teacher of the first run, and a fresh AdamW."""
    plan = preflight.plan(first, 1)
    old = plan.objective
    steps_by_hand(old, build_optimizer(old, first.optim), plan, first, range(first.steps))
    plan = preflight.plan(second, 1)
    task, optimizer = plan.objective, build_optimizer(plan.objective, second.optim)
    task.load_state_dict(old.state_dict())
    task.target.module.load_state_dict(old.target.module.state_dict())
    steps_by_hand(task, optimizer, plan, second, range(second.steps))
    return state_by_hand(task, optimizer)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return {}


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "world"), [(0, 1), (1, 2), (2, 1), (3, 2)])
def test_a_run_begins_with_networks_and_heads_at_every_stage(
    stage: int, world: int, tmp_path: Path, recipe: Any, crew: Any, expected: dict[str, Tensor]
) -> None:
    """Also exported from there: projector, predictor, BatchNorm, teacher and its projector go on, AdamW is fresh. The
    network is one that transformers has no class for, a size by its name."""
    options = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    shape = {"objective": BYOL, "steps": 3, "optim": OPTIM, "zero": {"stage": stage, "options": options},
             "backbones": {"image": {"type": "resnet-18-cifar", "size": 8, "config": {
                 "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}}}}  # fmt: skip
    first = recipe(tmp_path / "first", **shape)
    shape |= {"seed": 1, "optim": OPTIM | {"lr": 0.02}}
    second = recipe(tmp_path / "second", **shape, start_from=str(tmp_path / "first" / "export"))
    if not expected:
        one = [each.model_copy(update={"out": "unused", "zero": recipe().zero, "start_from": None})
               for each in (first, second)]  # fmt: skip
        expected |= by_hand(*one)
    (_, notes), *_ = crew(driven, world, first.model_dump_json(), second.model_dump_json())
    assert_same_state(state_of(tmp_path / "second"), expected)
    assert notes == [f"start_from: {tmp_path}/first/export, after 3 steps: networks image; heads of byol; the "
                     f"optimizer is fresh"]  # fmt: skip
    shutil.rmtree(tmp_path / "first")  # from here on, the checkpoint replaces it
    again = preflight.plan(second, world)
    assert again.beginning is None and not again.notes


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for runs that several tests begin with."""
    return tmp_path_factory.mktemp("exports")


@pytest.fixture
def alone(exports: Path, recipe: Any, crew: Any) -> Path:
    """The export of a run of simclr alone."""
    if not (exports / "alone").exists():
        crew(driven, 1, recipe(exports / "alone", steps=3).model_dump_json())
    return exports / "alone" / "export"


@pytest.fixture
def together(exports: Path, recipe: Any, joint: Any, crew: Any) -> Path:
    """The export of a joint run of simclr, clip and mlm."""
    if not (exports / "joint").exists():
        crew(driven, 1, recipe(exports / "joint", steps=3, **joint).model_dump_json())
    return exports / "joint" / "export"


def whole(plan: preflight.Plan) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in plan.objective.state_dict().items()}


def test_a_part_of_a_joint_run_goes_on_alone_and_a_task_as_a_part(
    together: Path, alone: Path, recipe: Any, joint: Any
) -> None:
    """What is not used, and what is made anew, is said; the rest is as it was exported."""
    plan = preflight.plan(recipe(start_from=str(together)), 1)
    stored = load_file(together / "objective.safetensors")
    heads = {key.partition("|")[2]: value for key, value in stored.items() if key.startswith("parts.views|")}
    assert len(heads) > 4 and all(torch.equal(whole(plan)[key], value) for key, value in heads.items())
    image = AutoModel.from_pretrained(together / "image").state_dict()
    assert all(torch.equal(whole(plan)[f"backbone.model.{key}"], value) for key, value in image.items())
    assert plan.notes[0].endswith("networks image; heads of simclr; the optimizer is fresh")
    assert plan.notes[1:] == [
        "start_from: in the export, not used here: text, heads of parts.captions (clip), heads of parts.words (mlm)"
    ]

    part = recipe(**joint, start_from=str(alone))
    plan, plain = preflight.plan(part, 1), preflight.plan(recipe(**joint), 1)
    stored = load_file(alone / "objective.safetensors")
    heads = {key.partition("|")[2]: value for key, value in stored.items()}
    assert all(torch.equal(whole(plan)[f"parts.views.{key}"], value) for key, value in heads.items())
    fresh = [key for key in whole(plan) if key.startswith(("parts.words", "parts.captions.text"))]
    assert fresh and all(torch.equal(whole(plan)[key], whole(plain)[key]) for key in fresh)
    assert plan.notes[1:] == ["start_from: made anew, since the export has none: backbones.text, heads of "
                              "parts.captions (clip), heads of parts.words (mlm)"]  # fmt: skip
    assert plan.notes == [note for note in draft(part, 1, per_node=8, device_bytes=None).notes if "start_from" in note]


TWICE = {"name": "joint", "parts": {
    name: {"name": "simclr", "source": "emoji", "hidden": 16, "dim": 8, "augment": {"min_scale": 0.2}}
    for name in ("a", "b")
}}  # fmt: skip


def test_what_does_not_fit_is_refused_by_name(
    together: Path, alone: Path, recipe: Any, joint: Any, tmp_path: Path
) -> None:
    """By training and by `bigssl plan`, in the same words."""
    simclr, text = recipe().objective.model_dump(), joint["backbones"]["text"]
    image = recipe().backbones["image"].model_dump()
    resnet, bert = image["config"], text["config"]
    mlm = {"objective": {"name": "mlm", "source": "text"},
           "data": {"sources": {"text": joint["data"]["sources"]["text"]}}}  # fmt: skip
    tokenizer = Path(text["tokenizer"]).read_text().replace('"the"', '"teh"')
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (alone, {"objective": simclr | {"hidden": 8}}, "objective.hidden is 16 there, 8 here; allowed: the same"),
        (alone, {"objective": BYOL}, "holds heads of simclr, none of this objective; allowed: .*init_from=.*/NAME"),
        (alone, {"backbones": {"image": image | {"config": resnet | {"hidden_sizes": [8, 8]}}}},
         r"networks.image.hidden_sizes is \[8, 16\] there, \[8, 8\] here"),
        (alone, {"backbones": {"image": {"type": "vit", "size": 16}}}, "'image' is a resnet there, a vit here"),
        (alone, {"backbones": {"net": image}, "objective": simclr | {"backbone": "net"}},
         "objective.backbone is 'image' there, 'net' here"),
        (alone, {"objective": TWICE}, "parts.a and parts.b would both go on with its simclr"),
        (alone.parent, {}, f"no objective.safetensors in it; allowed: an export of a run, as {alone}"),
        (alone / "image", {}, f"no objective.safetensors in it; allowed: an export of a run, as {alone}"),
        (tmp_path / "none", {}, "no such folder; allowed: an export of a run, as runs/NAME/export"),
        (together, mlm | {"backbones": {"text": text | {"config": bert | {"hidden_act": "relu"}}}},
         "networks.text.hidden_act is gelu there, relu here"),
        (together, mlm | {"backbones": {"text": text | {"tokenizer": str(tmp_path / "tokenizer.json")}}},
         f"'text' was trained with another tokenizer .*allowed: backbones.text.tokenizer={together}/text"),
        (alone, {"backbones": {"image": {"type": "resnet", "size": 16, "init_from": str(alone / "image")}}},
         "backbones.image.init_from: value .* beside start_from .*; allowed: one of the two"),
    ]  # fmt: skip
    for folder, changes, words in cases:
        asked = recipe(**changes, start_from=str(folder))
        with pytest.raises(ConfigError, match=words) as caught:
            preflight.plan(asked, 1)
        assert draft(asked, 1, per_node=8, device_bytes=None).failures == [str(caught.value)], words


def test_a_head_of_another_shape_or_none_is_refused(alone: Path, recipe: Any, tmp_path: Path) -> None:
    """An export of another version of the task, in whose config nothing tells."""
    shutil.copytree(alone, tmp_path / "export")
    path = tmp_path / "export" / "objective.safetensors"
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(size))["__metadata__"]
    tensors, name = load_file(path), "|head.layers.0.weight"
    save_file(tensors | {name: tensors[name][:3].clone()}, path, metadata)
    with pytest.raises(ConfigError, match=r"head.layers.0.weight of simclr is \[3, 16\] there, \[16, 16\] here"):
        preflight.plan(recipe(start_from=str(tmp_path / "export")), 1)
    del tensors[name]
    save_file(tensors, path, metadata)
    with pytest.raises(ConfigError, match="it has no head.layers.0.weight of simclr"):
        preflight.plan(recipe(start_from=str(tmp_path / "export")), 1)


def test_state_that_an_export_cannot_hold_is_named(
    alone: Path, recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = preflight.plan(recipe(), 1)
    monkeypatch.setattr(type(plan.objective), "get_extra_state", lambda self: {1, 2}, raising=False)
    monkeypatch.setattr(type(plan.objective), "set_extra_state", lambda self, state: None, raising=False)
    _, tensors, metadata = rest_of_objective(plan.objective, recipe().objective, plan.backbones, 3)
    shutil.copytree(alone, tmp_path / "export")
    save_file(tensors, tmp_path / "export" / "objective.safetensors", metadata)
    used = recipe(start_from=str(tmp_path / "export"))
    assert "start_from: made anew, since no export can hold it: _extra_state of simclr" in preflight.plan(used, 1).notes


def gone(text: str) -> str:
    """What a rank ends with where the export goes away after the plan. Collective."""
    recipe = recipe_model(config_union()).model_validate_json(text)
    plan = preflight.plan(recipe, distributed.world())
    zero.start()
    distributed.barrier()
    if distributed.is_main():
        shutil.rmtree(recipe.start_from)
    with pytest.raises(NotSaved) as caught:
        plan.beginning.begin(plan.objective, plan.backbones)
    return str(caught.value)


@pytest.mark.distributed
def test_an_export_that_goes_away_meanwhile_ends_every_rank_in_a_line(
    alone: Path, recipe: Any, tmp_path: Path, crew: Any
) -> None:
    shutil.copytree(alone, tmp_path / "export")
    (tmp_path / "run").mkdir()
    one, other = crew(gone, 2, recipe(tmp_path / "run", start_from=str(tmp_path / "export")).model_dump_json())
    assert one == other
    assert one.startswith(f"start_from: value '{tmp_path}/export': cannot be read any more (No such file")
