"""A run begins from the same weights at every ZeRO stage; at stage 3 its backbones are made in slices, never whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bigssl.config.errors import ConfigError
from bigssl.engine import zero
from bigssl.engine.optim import build_optimizer
from bigssl.engine.plan import preflight
from bigssl.nets import build
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives import simclr

VIT = {"type": "vit", "size": 32, "config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                                             "intermediate_size": 64, "patch_size": 8}}  # fmt: skip


def state_of(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, bool]]:
    """Weights, whole, on rank 0; buffers on every rank; whether each weight is trained."""
    state = zero.full_state(module) | {name: value.clone() for name, value in module.named_buffers()}
    return state, {name: parameter.requires_grad for name, parameter in module.named_parameters()}


def beginning(recipe: Any) -> tuple[dict[str, Tensor], dict[str, bool]]:
    """The state before the first step, as the loop makes it."""
    plan = preflight.plan(recipe, preflight.announced_world())
    zero.start()
    optimizer = build_optimizer(plan.objective, recipe.optim)
    zero.Engine(plan.objective, optimizer, recipe, micro=plan.micro, accum=plan.accum, bf16=False)
    state = state_of(plan.objective)
    zero.stop()
    return state


def save_pretrained(recipe: Any, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The backbones of `recipe` as folders, with statistics of BatchNorm that no constructor gives."""
    sections = {}
    for name, section in recipe.backbones.items():
        model = preflight.plan(recipe, 1).backbones[name].model
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        model.to(dtype).save_pretrained(folder / name)
        sections[name] = section.model_dump() | {"init_from": str(folder / name), "config": {}}
    return sections


@pytest.mark.distributed
@pytest.mark.parametrize("source", ["created", "init_from", "init_from, stored as bfloat16"])
def test_a_run_begins_alike_at_stage_0_and_in_slices(
    source: str, ranks: Any, recipe: Any, joint: dict[str, Any], tmp_path: Path
) -> None:
    """ResNet with BatchNorm over ranks, BERT with a head tied to its embedding and a pooler that is frozen."""
    text = joint["backbones"]["text"] | {"activation_checkpointing": True, "compile": True}
    changes = {**joint, "backbones": joint["backbones"] | {"text": text}}
    if source.startswith("init_from"):
        dtype = torch.bfloat16 if source.endswith("bfloat16") else torch.float32
        changes["backbones"] = save_pretrained(recipe(**changes), tmp_path, dtype)
    objective = preflight.plan(recipe(**changes), 1).objective
    whole, trained = state_of(objective)
    assert not all(trained.values())
    for rank, (state, also_trained) in enumerate(ranks(beginning, 2, recipe(**changes, zero={"stage": 3}))):
        assert also_trained == trained
        assert state.keys() == whole.keys() if rank == 0 else state
        for name, value in state.items():
            assert torch.equal(value, whole[name]), f"{name} on rank {rank}"


def most_whole(recipe: Any) -> tuple[int, int, int]:
    """Bytes: of the backbones, whole after planning; whole at a time while they are cut; of the largest layer."""
    plan = preflight.plan(recipe, preflight.announced_world())
    zero.start()
    parameters = [p for tower in plan.backbones.values() for p in tower.parameters()]
    planned = sum(p.nbytes for p in parameters if not p.is_meta)
    most, layer, plain = 0, build.largest_layer(plan.objective), zero.deepspeed.zero.Init._convert_to_zero_parameters

    def watched(init: Any, given: Any) -> None:
        nonlocal most
        most = max(most, sum(p.nbytes for p in parameters if not p.is_meta))
        plain(init, given)

    zero.deepspeed.zero.Init._convert_to_zero_parameters = watched
    zero.cut(plan.objective, zero.settings_for(recipe, plan.objective, micro=plan.micro, accum=plan.accum, bf16=False))
    zero.stop()
    return planned, most, layer


@pytest.mark.distributed
def test_no_rank_holds_more_of_a_backbone_than_its_share_and_a_layer(
    ranks: Any, recipe: Any, joint: dict[str, Any]
) -> None:
    wide = joint["backbones"]["text"]["config"] | {"num_hidden_layers": 12, "hidden_size": 64}
    changes = {**joint, "backbones": joint["backbones"] | {"text": joint["backbones"]["text"] | {"config": wide}}}
    for planned, most, layer in ranks(most_whole, 2, recipe(**changes, zero={"stage": 3})):
        assert planned < 10_000, "backbones are whole before the engine exists"
        assert 0 < most <= layer + planned


@pytest.mark.parametrize("kind", ["half", "lacking", "buffers"])
def test_what_is_stored_in_half_precision_is_held_so_until_it_is_needed(
    kind: str, recipe: Any, joint: dict[str, Any], tmp_path: Path
) -> None:
    """But not where numbers would then be others: made anew, or statistics of BatchNorm. Filled, they are float32."""
    made = recipe(**(joint if kind != "buffers" else {}))
    name = "image" if kind == "buffers" else "text"
    section = save_pretrained(made, tmp_path, torch.bfloat16)[name]
    model = preflight.plan(made, 1).backbones[name].model
    if kind == "lacking":  # the pooler
        stored = load_file(tmp_path / name / "model.safetensors")
        kept = {key: value for key, value in stored.items() if "pooler" not in key}
        save_file(kept, tmp_path / name / "model.safetensors", {"format": "pt"})
    torch.manual_seed(5)
    whole = build.load_network("net", section["init_from"], model.config)
    torch.manual_seed(5)
    with build.postponed(main=True):
        read = build.load_network("net", section["init_from"], model.config)
    assert (next(read.parameters()).dtype == torch.bfloat16) == (kind == "half")
    build.fill(read)
    assert read.config.dtype == whole.config.dtype == torch.float32
    for (key, value), mine in zip(whole.state_dict().items(), read.state_dict().values(), strict=True):
        assert torch.equal(mine, value) and mine.dtype == value.dtype, key


def teacher(recipe: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Whole student and its twin, made when the student was only described; of one in slices, there is none."""
    with build.postponed(main=os.environ["RANK"] == "0"):
        objective, towers = preflight.build_networks(recipe)
    student = nn.ModuleList([towers["image"], objective.head])
    zero.start()
    other = build.twin(student)
    zero.cut(objective, zero.settings_for(recipe, objective, micro=4, accum=1, bf16=False))
    with pytest.raises(RuntimeError, match="in slices"):
        build.twin(student)
    state = zero.full_state(student)
    assert not any(p.requires_grad for p in other.parameters()) and any(p.requires_grad for p in student.parameters())
    zero.stop()
    return state, other.state_dict()


@pytest.mark.distributed
@pytest.mark.parametrize("pretrained", [False, True])
def test_a_twin_is_whole_on_every_rank(pretrained: bool, ranks: Any, recipe: Any, tmp_path: Path) -> None:
    """Also of a ViT, whose class token has numbers from its constructor before it is filled."""
    changes = {"backbones": save_pretrained(recipe(), tmp_path) if pretrained else {"image": VIT}}
    (student, first), (_, second) = ranks(teacher, 2, recipe(**changes, zero={"stage": 3}))
    assert first.keys() == student.keys() == second.keys()
    for name, value in student.items():
        assert torch.equal(first[name], value) and torch.equal(second[name], value), name


def test_a_twin_of_a_whole_network_is_a_copy_of_it(recipe: Any) -> None:
    tower: Tower = preflight.plan(recipe(), 1).backbones["image"]
    other = build.twin(tower)
    assert all(torch.equal(value, tower.state_dict()[name]) for name, value in other.state_dict().items())
    next(tower.parameters()).data.add_(1)
    assert not torch.equal(next(other.parameters()), next(tower.parameters()))


class Derived(simclr.Simclr):
    """Makes a parameter of the backbone's numbers."""

    def __init__(self, config: Any, towers: Any) -> None:
        super().__init__(config, towers)
        self.start = nn.Parameter(next(self.backbone.parameters()).detach() * 2)

    def forward(self, batch: Any, at: Progress) -> Any:
        raise NotImplementedError


def test_a_parameter_made_from_numbers_that_are_not_there_is_named(recipe: Any) -> None:
    used = recipe()
    with build.postponed(main=True):
        tower = Tower("image", used.backbones["image"], None)
        task = Derived(used.objective, {"image": tower})
    with pytest.raises(ConfigError, match=r"objective: start of Derived is made from the weights .*torch.zeros"):
        build.refuse_derived(task)
