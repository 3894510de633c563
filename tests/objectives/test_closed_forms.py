"""Losses of whole objectives at states where the value is known (NT-Xent, CLIP and MLM at collapse and at start)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from bigssl.nets.heads.base import MaskedLanguageHead
from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover

AT = Progress(0, 100)


def flatten_weights(module: nn.Module, value: float = 0.0) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


@pytest.mark.parametrize("size", [4, 16])
def test_simclr_collapsed_is_ln_of_2n_minus_1(size: int, objective: Any, batch: Any) -> None:
    task = objective(discover()["simclr"], "simclr")
    flatten_weights(task.head)
    with torch.no_grad():
        task.head.layers[-1].bias.fill_(1.0)  # one embedding for every image
    losses = task(batch(task, size=size), AT)
    assert losses.total.item() == pytest.approx(math.log(2 * size - 1), abs=1e-5)
    assert losses.blind == pytest.approx(math.log(2 * size - 1))


def test_simclr_equals_a_loop_over_pairs(objective: Any, batch: Any) -> None:
    task = objective(discover()["simclr"], "simclr", temperature=0.3)
    data = batch(task, size=5)
    loss = task(data, AT).total.item()
    with torch.no_grad():
        both = torch.cat([data["view1"], data["view2"]])
        z = torch.nn.functional.normalize(task.head(task.backbone.features({"image": both})).double())
    total = 0.0
    for i in range(10):
        others = [math.exp(float(z[i] @ z[j]) / 0.3) for j in range(10) if j != i]
        total -= math.log(math.exp(float(z[i] @ z[(i + 5) % 10]) / 0.3) / sum(others))
    assert loss == pytest.approx(total / 10, rel=1e-5)


@pytest.mark.parametrize(("layers", "norm"), [(2, True), (3, True), (3, False)])
def test_the_projection_heads_of_simclr(layers: int, norm: bool, objective: Any) -> None:
    """Layers with a bias or with BatchNorm, of v1 two and of v2 three; the last one is linear."""
    head = objective(discover()["simclr"], "simclr", layers=layers, norm=norm).head.layers
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(16, 16)] * (layers - 1) + [(16, 8)]
    assert [layer.bias is None for layer in linear] == [norm] * (layers - 1) + [False]
    assert sum(isinstance(layer, nn.BatchNorm1d | nn.SyncBatchNorm) for layer in head) == norm * (layers - 1)
    assert head[-1] is linear[-1]


def test_a_learned_temperature_begins_where_it_is_told_and_has_the_gradient_of_the_loss(
    objective: Any, batch: Any
) -> None:
    fixed, learned = (
        objective(discover()["simclr"], "simclr", temperature=0.3, learn_temperature=learn) for learn in (False, True)
    )
    data = batch(fixed, size=5)
    losses = learned(data, AT)
    losses.total.backward()
    assert losses.total.item() == pytest.approx(fixed(data, AT).total.item(), rel=1e-6)
    assert losses.stats["temperature"].item() == pytest.approx(0.3)
    around = []
    for step in (-1e-3, 1e-3):  # of log(1 / temperature)
        other = objective(discover()["simclr"], "simclr", temperature=0.3 * math.exp(-step))
        around.append(other(data, AT).total.item())
    assert learned.log_scale.grad.item() == pytest.approx((around[1] - around[0]) / 2e-3, rel=1e-2)


def test_clip_collapsed_is_ln_n_and_its_scale_is_capped(objective: Any, batch: Any) -> None:
    task = objective(discover()["clip"], "clip")
    data = batch(task, size=8)
    assert task(data, AT).stats["scale"].item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        task.log_scale.fill_(9.0)
    assert task(data, AT).stats["scale"].item() == pytest.approx(100.0)
    flatten_weights(task.image_projection)
    assert task(data, AT).total.item() == pytest.approx(math.log(8), abs=1e-5)


def test_mlm_without_knowledge_is_ln_of_the_vocabulary(objective: Any, batch: Any) -> None:
    task = objective(discover()["mlm"], "mlm")
    data = batch(task)
    start = task(data, AT)
    assert start.total.item() == pytest.approx(start.blind.item(), rel=0.05)
    flatten_weights(task.head)
    assert task(data, AT).total.item() == pytest.approx(math.log(task.backbone.vocabulary), abs=1e-5)


def test_mlm_equals_a_loop_over_the_masked_tokens(objective: Any, batch: Any) -> None:
    task = objective(discover()["mlm"], "mlm")
    data = batch(task)
    with torch.no_grad():
        hidden = task.backbone.hidden(data)
        head = task.head
        logits = head.norm(nn.functional.gelu(head.dense(hidden))).double() @ head.weight.double().T + head.bias
        picked = [
            -torch.log_softmax(logits[b, t], 0)[data["labels"][b, t]].item()
            for b, t in (data["labels"] != -100).nonzero().tolist()
        ]
    assert task(data, AT).total.item() == pytest.approx(sum(picked) / len(picked), rel=1e-5)


def test_mlm_head_without_a_masked_token_is_zero_with_zero_gradient() -> None:
    embedding = nn.Parameter(torch.randn(7, 4))
    head = MaskedLanguageHead(embedding)
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    head(hidden, torch.full((2, 3), -100)).backward()
    assert hidden.grad is not None and not hidden.grad.any()


def test_joint_is_the_weighted_sum_of_its_parts(objective: Any, batch: Any) -> None:
    task = objective(discover()["joint"], "joint")
    data, twin = batch(task), objective(discover()["joint"], "joint")  # a pass counts tokens
    losses = task(data, AT)
    weights = {"views": 1.0, "captions": 0.5, "words": 0.1}
    alone = {name: twin.parts[name](data[name], AT) for name in weights}
    assert losses.total.item() == pytest.approx(sum(w * alone[n].total.item() for n, w in weights.items()), rel=1e-5)
    assert float(losses.blind) == pytest.approx(sum(w * float(alone[n].blind) for n, w in weights.items()))
    assert {name: part.total.item() for name, part in losses.parts.items()} == pytest.approx(
        {name: alone[name].total.item() for name in weights}, rel=1e-5
    )


def test_joint_parts_draw_randomness_of_their_own(objective: Any, batch: Any) -> None:
    """A part that draws more must not shift what the others see."""
    preset = discover()["joint"].preset["objective"]["parts"]
    calm = {**preset, "views": {**preset["views"], "augment": {"jitter": 0.0, "blur": 0.0}}}
    full, less = (batch(objective(discover()["joint"], "joint", parts=parts)) for parts in (preset, calm))
    assert not torch.equal(full["views"]["view1"], less["views"]["view1"])
    assert torch.equal(full["captions"]["image"], less["captions"]["image"])
    assert torch.equal(full["words"]["labels"], less["words"]["labels"])


def test_joint_hands_on_teachers_and_exports(objective: Any) -> None:
    preset = discover()["joint"].preset["objective"]["parts"]
    twice = {"first": preset["captions"], "second": preset["captions"]}
    slow = {f"slow{n}": {"name": "byol", "hidden": 16, "dim": 8} for n in (1, 2)}
    task = objective(discover()["joint"], "joint", parts={**twice, **slow, "words": preset["words"]})
    assert set(task.exports()) == {"clip", "second-clip", "image_teacher", "slow2-image_teacher", "mlm"}
    assert {name: teacher.student for name, teacher in task.teachers().items()} == {
        f"{name}/target": task.parts[name].online for name in slow
    }
