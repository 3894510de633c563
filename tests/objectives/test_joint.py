"""Joint tasks: what a part is alone, and weights along ramps or by rules, on one rank and two, and after a resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contract_runs as runs
import numpy as np
import pytest
import torch
from contract_runs import Cell
from pydantic import ValidationError

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.engine.stepping.split import check_weighing
from bigssl.nets.progress import Progress
from bigssl.nets.weighing.rules import surgery, uncertain
from bigssl.objectives.base import discover
from bigssl.objectives.weighing import Ramp

VIEWS = {"name": "simclr", "hidden": 16, "dim": 8}
CAPTIONS = {"name": "clip", "dim": 8}
WORDS = {"name": "mlm"}
BODIES = {"image": "vit", "text": "bert"}


def section_of(kind: str, dropping: bool = False) -> dict[str, Any]:
    """Of a ViT or a BERT, without BatchNorm."""
    rates = {"hidden_dropout_prob": 0.1 * dropping, "attention_probs_dropout_prob": 0.1 * dropping}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "vit":
        return {"type": "vit", "size": 32, "config": {"patch_size": 8, **sizes, **rates}}
    return {"type": "bert", "tokenizer": str(runs.DEMO / "tokenizer.json"), "length": 16, "config": sizes | rates}


def values(parts: dict[str, Any], dropping: bool = False, out: Any = "unused", **changes: Any) -> dict[str, Any]:
    """A recipe of the joint task over both."""
    backbones = {name: section_of(kind, dropping) for name, kind in BODIES.items()}
    objective = runs.with_source({"name": "joint", "parts": parts, **changes.pop("objective", {})}, "shards")
    changes |= {"backbones": backbones, "objective": objective}
    made = runs.preset_recipe("joint", lambda kind: BackboneConfig(type="bert"), out, **changes)
    return made | {"optim": made["optim"] | {"clip": 1e9}}  # a norm over more parameters is summed in another order


def alone(part: dict[str, Any], dropping: bool) -> dict[str, Any]:
    made = values({"only": part}, dropping)
    objective = {name: value for name, value in made["objective"]["parts"]["only"].items() if name != "weight"}
    used = {"image"} if part["name"] == "simclr" else {"text"} if part["name"] == "mlm" else set(BODIES)
    return made | {"objective": objective, "backbones": {k: v for k, v in made["backbones"].items() if k in used}}


@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize("order", [(VIEWS, CAPTIONS), (CAPTIONS, VIEWS), (WORDS, CAPTIONS)])
def test_a_part_of_weight_1_beside_one_of_weight_0_is_that_task_alone_to_the_bit(order: Any, dropping: bool) -> None:
    """Its samples, dropout, loss and weights, whichever comes first of the two."""
    first, second = order
    body = "text" if first is WORDS else "image"
    want = runs.plain(alone(first, dropping))
    for parts in ({"a": first | {"weight": 1.0}, "b": second | {"weight": 0.0}},
                  {"b": second | {"weight": 0.0}, "a": first | {"weight": 1.0}}):  # fmt: skip
        got = runs.plain(values(parts, dropping))
        assert [row["loss"] for row in got.passes] == [row["loss"] for row in want.passes]
        assert [row["loss/a"] for row in got.passes] == [row["loss"] for row in want.passes]
        for name, value in want.state.items():
            mine = got.state[f"parts.a.{name}"] if f"parts.a.{name}" in got.state else _shared(got.state, name, body)
            assert torch.equal(torch.as_tensor(mine), torch.as_tensor(value)), name


def _shared(state: dict[str, Any], name: str, body: str) -> Any:
    """What two parts hold stands in a state once, by the name that it has in the first of them."""
    _, _, rest = name.partition(".")
    return state[f"parts.b.{body}.{rest}" if f"parts.b.{body}.{rest}" in state else f"parts.b.backbone.{rest}"]


RULES = {
    "uncertainty": {"balance": {"rule": "uncertainty"}},
    "gradnorm": {"balance": {"rule": "gradnorm", "rate": 0.2}, "watch": 2},
    "surgery": {"balance": {"rule": "surgery"}},
    "ramps": {"watch": 1},
}
PARTS = {"views": VIEWS, "captions": CAPTIONS | {"weight": 0.5}, "words": WORDS | {"weight": 0.25}}
RAMPED = PARTS | {"views": VIEWS | {"weight": {"start": 0.0, "end": 2.0, "until": 0.5, "shape": "cosine"}}}


@pytest.mark.distributed
@pytest.mark.parametrize("rule", RULES)
def test_two_ranks_and_a_resume_are_one_process(rule: str, crew: Any, tmp_path: Path) -> None:
    is_one_process(values(RAMPED if rule == "ramps" else PARTS, objective=RULES[rule]), rule, crew, tmp_path)


@pytest.mark.distributed
@pytest.mark.parametrize("rule", ["gradnorm", "uncertainty"])
def test_so_they_are_of_text_series_and_sounds_each_of_its_own_source_and_of_two_tasks_of_a_kind(
    rule: str, crew: Any, tmp_path: Path
) -> None:
    """What their losses are means over differs in number by rank: tokens, patches, frames."""
    presets = {name: discover()[name].preset for name in ("wav2vec2", "masked_series")}
    made = values(PARTS, objective=RULES[rule])
    parts = {
        "words": {"name": "mlm", "source": "shards", "weight": 0.5},
        "more": {"name": "mlm", "source": "shards", "ratio": 0.4, "weight": 0.25},
        "heard": {"name": "wav2vec2", "source": "sounds", **presets["wav2vec2"]["objective"]},
        "moved": {"name": "masked_series", "source": "motions", **presets["masked_series"]["objective"]},
    }
    bodies = {name: each for preset in presets.values() for name, each in preset["backbones"].items()}
    folders = {"shards": "emoji/train", "sounds": presets["wav2vec2"]["data"],
               "motions": presets["masked_series"]["data"]}  # fmt: skip
    sources = {name: {"url": str(runs.DEMO / folder)} for name, folder in folders.items()}
    made |= {"objective": {"name": "joint", "parts": parts, **RULES[rule]},
             "backbones": bodies | {"text": section_of("bert")},
             "data": made["data"] | {"sources": sources}}  # fmt: skip
    is_one_process(made, rule, crew, tmp_path)


def is_one_process(made: dict[str, Any], rule: str, crew: Any, tmp_path: Path) -> None:
    want = runs.plain(made)
    stage = 3 if rule == "uncertainty" else 2
    there = runs.at_cell(made | {"out": str(tmp_path / "run")}, Cell(stage, 0 if stage == 3 else None, 2, "fp32"))
    ranks = crew(runs.driven, 2, there)
    assert ranks[0].passes[-1].keys() == want.passes[-1].keys()
    for number, passed in enumerate(want.passes):
        both = [rank.passes[number] for rank in ranks]
        for name, value in passed.items():
            mean = sum(each[name] for each in both) / 2
            assert mean == pytest.approx(value, rel=2e-3, abs=2e-4), f"{name} of pass {number}"
            if name.startswith(("blind", "stats/weight", "stats/gradient", "stats/conflict")):
                assert both[0][name] == pytest.approx(both[1][name], rel=1e-5), f"{name} differs between ranks"
    same_state(ranks[0].state, want)
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").glob("step-*")))
    again = crew(runs.driven, 1, there, None, True)[0]
    assert len(again.passes) == len(want.passes) - 2
    for got, passed in zip(again.passes, want.passes[2:], strict=True):
        for name, value in passed.items():
            assert got[name] == pytest.approx(value, rel=2e-3, abs=2e-4), f"{name} after a resume"
    same_state(again.state, want)


def same_state(state: dict[str, Any], want: runs.Run) -> None:
    """Weights, buffers and what rules remember, relative to what training changed of each."""
    assert state.keys() == want.state.keys()
    for name, value in want.state.items():
        got, wanted, before = (torch.as_tensor(each).double() for each in (state[name], value, want.start[name]))
        off, moved = (got - wanted).abs().max(), (wanted - before).abs().max()
        assert off <= 2e-2 * moved + 1e-6, f"{name}: {off:.3g} of {moved:.3g}"


def task_of(objective: Any, rule: str, **changes: Any) -> Any:
    return objective(discover()["joint"], "joint", parts=PARTS, **RULES[rule], **changes)


@pytest.fixture
def joint(objective: Any, batch: Any) -> Any:
    def make(rule: str) -> tuple[Any, Any]:
        task = task_of(objective, rule)
        return task, batch(task)

    return make


def test_the_total_is_what_each_rule_says(joint: Any) -> None:
    """Of uncertainty, also by its own parameters; blind values are weighed as the losses are."""
    task, data = joint("uncertainty")
    with torch.no_grad():
        task.weighing.variances.log_variances.copy_(torch.tensor([0.3, -0.5, 1.0]))
    found = task(data, Progress(0, 4))
    factors, added = uncertain(torch.tensor([0.3, -0.5, 1.0]), torch.tensor([True, True, True]))
    fixed = torch.tensor([1.0, 0.5, 0.25])
    for attribute in ("total", "blind"):
        own = torch.tensor([float(getattr(each, attribute)) for each in found.parts.values()])
        value = float(torch.as_tensor(getattr(found, attribute)).detach())
        assert value == pytest.approx((fixed * (factors * own + added)).sum().item(), rel=1e-5)
    found.total.backward()
    assert task.weighing.variances.log_variances.grad.abs().min() > 0
    assert found.stats["weight.views"].item() == pytest.approx(factors[0].item())


def test_a_part_of_weight_0_moves_no_variance(objective: Any, batch: Any) -> None:
    """Else it would be about 0 when the ramp of a part begins, and the weight anything."""
    ramp = {"start": 0.0, "end": 1.0, "begin": 0.5}
    task = objective(discover()["joint"], "joint", parts={"views": VIEWS, "captions": CAPTIONS | {"weight": ramp}},
                     **RULES["uncertainty"])  # fmt: skip
    task(batch(task), Progress(0, 4)).total.backward()
    assert task.weighing.variances.log_variances.grad[1] == 0 != task.weighing.variances.log_variances.grad[0]


def test_gradnorm_moves_once_a_step_of_several_passes(joint: Any) -> None:
    task, data = joint("gradnorm")
    weights = [task(data, Progress(step, 4)) and task.weighing.moving.weights.tolist() for step in (0, 0, 1, 1)]
    assert weights[0] == weights[1] != weights[2] == weights[3] and task.weighing.moving.step == 2


def test_a_shared_backbone_that_is_not_trained_is_no_crash(joint: Any) -> None:
    for rule in ("ramps", "gradnorm"):
        task, data = joint(rule)
        for tower, _ in task.weighing._shared.values():
            tower.requires_grad_(False)
        if rule == "gradnorm":
            with pytest.raises(ConfigError, match="train no matrix of backbone"):
                task(data, Progress(0, 4))
        else:
            assert task(data, Progress(0, 4)).stats["gradient.views"] == 0


def test_surgery_leaves_heads_alone_and_changes_what_is_shared(joint: Any) -> None:
    """Against one backward pass for each part."""
    task, data = joint("surgery")
    at = Progress(3, 4)
    plain = task_of_parts(task, data, at)
    total = task(data, at)
    assert total.total.item() == pytest.approx(sum(loss.item() for loss, _ in plain.values()), rel=1e-5)
    total.total.backward()
    shared = set(task.weighing._bodies())
    sharing = task.weighing.sharing
    assert sharing == ["views", "captions", "words"] and shared
    vectors = {
        name: torch.cat([gradients.get(each, torch.zeros_like(each)).flatten() for each in shared]).double()
        for name, (_, gradients) in plain.items()
    }
    products = torch.stack([torch.stack([vectors[a] @ vectors[b] for b in sharing]) for a in sharing])
    factors = dict(zip(sharing, surgery(products, at.step).tolist(), strict=True))
    for parameter in task.parameters():
        if not parameter.requires_grad:
            continue
        own = [(factors[name] if parameter in shared else 1.0) * gradients[parameter]
               for name, (_, gradients) in plain.items() if parameter in gradients]  # fmt: skip
        assert torch.allclose(parameter.grad, sum(own), rtol=1e-3, atol=1e-6)


def task_of_parts(task: Any, data: Any, at: Progress) -> dict[str, Any]:
    """By part, its weighted loss, and its gradients by parameter."""
    state = {name: value.clone() for name, value in task.state_dict().items()}
    found = {}
    for name, weight in (("views", 1.0), ("captions", 0.5), ("words", 0.25)):
        losses = task._losses(data, at)
        trained = [p for p in task.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(weight * losses[name].total, trained, allow_unused=True)
        task.load_state_dict(state)
        by = {each: gradient for each, gradient in zip(trained, gradients, strict=True) if gradient is not None}
        found[name] = weight * losses[name].total, by
    return found


def test_ramps_go_from_start_to_end_between_two_shares_of_the_run() -> None:
    linear = Ramp(start=1.0, end=3.0, begin=0.25, until=0.75)
    assert [linear(Progress(step, 8)) for step in range(9)] == [1, 1, 1, 1.5, 2, 2.5, 3, 3, 3]
    cosine = Ramp(start=0.0, end=1.0, shape="cosine")
    assert np.allclose([cosine(Progress(step, 4)) for step in range(5)], [0, 0.1464466, 0.5, 0.8535534, 1])


def test_what_cannot_be_is_refused(objective: Any) -> None:
    make = discover()["joint"]
    ramp = {"start": 0.5, "end": 1.0}
    for balance, parts, why in (
        ("gradnorm", PARTS | {"views": VIEWS | {"weight": ramp}}, "parts.views.weight: a ramp, but objective.balance"),
        ("gradnorm", PARTS | {"views": VIEWS | {"weight": 0.0}}, "parts.views.weight: value 0, but objective.balance"),
        ("surgery", {"views": VIEWS, "words": WORDS}, "no two parts share a backbone"),
    ):
        with pytest.raises(ConfigError, match=why):
            objective(make, "joint", parts=parts, balance={"rule": balance})
    with pytest.raises(ConfigError, match="every weight is 0"):
        objective(make, "joint", parts={"views": VIEWS | {"weight": {"start": 0.0, "end": 0.0}}})
    for wrong in ({"rule": "surgery", "rate": 0.1}, {"rule": "mean"}):
        with pytest.raises(ValidationError):
            objective(make, "joint", parts=PARTS, balance=wrong)
    with pytest.raises(ValidationError, match="begin"):
        Ramp(start=0, end=1, begin=0.5, until=0.5)


@pytest.mark.parametrize(("stage", "cached", "refused"), [(3, False, "zero.stage 3"), (2, True, "batch.cached"),
                                                          (2, False, "")])  # fmt: skip
def test_gradients_are_looked_at_only_where_they_are(objective: Any, stage: int, cached: bool, refused: str) -> None:
    recipe: Any = SimpleNamespace(zero=SimpleNamespace(stage=stage), batch=SimpleNamespace(cached=cached))
    for rule in ("surgery", "gradnorm"):
        task = task_of(objective, rule)
        if refused:
            with pytest.raises(ConfigError, match=f"objective.balance.rule: value '{rule}'.*{refused}.*allowed"):
                check_weighing(recipe, task)
        else:
            check_weighing(recipe, task)
    check_weighing(recipe, task_of(objective, "uncertainty"))
    if cached:  # norms that nobody measured would stand in the metrics as 0
        with pytest.raises(ConfigError, match="objective.watch: value 1.*batch.cached.*allowed: 0"):
            check_weighing(recipe, task_of(objective, "ramps"))
