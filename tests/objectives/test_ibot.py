"""iBOT's two losses written out, and a student that does not see what is hidden from it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from test_dino import cross_entropy, shaken, softmax

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.nets.patches import MASKABLE, can_mask, class_and_patches
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.ibot import Ibot

AT = Progress(50, 100)
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}


def test_class_tokens_and_hidden_patches_are_predicted(objective: Any, batch: Any) -> None:
    """Hidden patch by hidden patch: the mean over those of a crop, then over all crops, those with none as 0."""
    task = shaken(objective(Ibot, "ibot", patch_weight=2.0))
    data = batch(task)
    hidden = data["hidden"].transpose(0, 1).flatten(0, 1)
    assert ((data["hidden"].sum(2) > 0).sum(1) == 1).all()  # one of the two crops
    large, head = torch.cat([data["view1"], data["view2"]]), task.student.head
    with torch.no_grad():
        network = task.teacher.module
        classes, patches = (network.head(each).cosines for each in class_and_patches(network.tower, large))
        seen = class_and_patches(task.backbone, large, hidden, task.mask_token)
        student_classes, student_patches = (head(each).cosines for each in seen)
        small = [head(class_and_patches(task.backbone, each)[0]).cosines for each in data["small"].unbind(1)]
    targets = [[softmax([v / 0.07 for v in row]) for row in part] for part in classes.double().view(2, 12, 16).tolist()]
    crops = [*student_classes.view(2, 12, 16).tolist(), *(each.tolist() for each in small)]
    terms = [cross_entropy(targets[t][b], [v / 0.2 for v in crops[s][b]])
             for t in range(2) for s in range(4) if s != t for b in range(12)]  # fmt: skip
    rows = []
    for crop in range(24):
        inside = [cross_entropy(softmax([v / 0.07 for v in patches[crop, n].double().tolist()]),
                                [v / 0.2 for v in student_patches[crop, n].double().tolist()])
                  for n in range(16) if hidden[crop, n]]  # fmt: skip
        rows.append(np.mean(inside) if inside else 0.0)
    losses = task(data, AT)
    assert losses.parts["classes"].total.item() == pytest.approx(np.mean(terms), rel=1e-4)
    assert losses.parts["patches"].total.item() == pytest.approx(np.mean(rows), rel=1e-4)
    assert losses.total.item() == pytest.approx(np.mean(terms) + 2 * np.mean(rows), rel=1e-4)


def test_a_compiled_network_hides_what_is_hidden_each_time(objective: Any) -> None:
    """Other patches in each pass, none in between, as of small crops and of the teacher; compiled twice for both."""
    task = objective(Ibot, "ibot")
    towers, graphs = (task.backbone, task.teacher.module.tower), []
    plain = [copy.deepcopy(each) for each in towers]

    def kept(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    for each in towers:
        each.model.compile(backend=kept)
    for step in range(3):
        pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        hidden = torch.rand(2, 16) < 0.4
        for which, masks in ((0, (hidden, task.mask_token)), (0, ()), (1, ())):
            got, want = (class_and_patches(each[which], pictures, *masks) for each in (towers, plain))
            torch.testing.assert_close(got, want, msg=f"{step} {which}")
    assert len(graphs) <= 4


@pytest.mark.parametrize("kind", MASKABLE)
def test_a_token_stands_in_the_place_of_what_is_hidden(kind: str) -> None:
    """Nothing of it reaches any state, its place does; with nothing hidden, states are the network's own."""
    torch.manual_seed(0)
    width = {"mlp_ratio": 2} if kind.startswith("dinov2") else {"intermediate_size": 64}
    tower = Tower("image", BackboneConfig(type=kind, size=32, config=TINY | width), None).eval()
    can_mask(tower.model)
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[0, 5] = hidden[1, 0] = True
    changed = pictures.clone()
    changed[0, :, 8:16, 8:16] = changed[1, :, :8, :8] = 77
    token = torch.randn(32)
    with torch.no_grad():
        classes, patches = class_and_patches(tower, pictures, hidden, token)
        own = class_and_patches(tower, pictures)
        for one, other in zip(class_and_patches(tower, changed, hidden, token), (classes, patches), strict=True):
            assert torch.equal(one, other)
        assert not torch.allclose(class_and_patches(tower, changed)[1], own[1], atol=1e-4)
        assert not torch.allclose(class_and_patches(tower, pictures, hidden, -token)[1], patches, atol=1e-2)
        torch.testing.assert_close(own[1], tower.hidden({"image": pictures}))
        untouched = class_and_patches(tower, pictures, hidden & False, token)
    assert torch.equal(untouched[0], own[0]) and patches.shape == (2, 16, 32)


def test_masks_follow_from_the_sample(objective: Any, stream: Any) -> None:
    task, order = objective(Ibot, "ibot", hidden_from=0.25, hidden_to=0.5), stream(Ibot)
    sample = order.read(0)
    drawn = [task.prepare(sample, np.random.default_rng(n), None)["hidden"] for n in range(60)]
    counts = [int(each.sum()) for each in drawn]
    assert set(counts) == {4, 5, 6, 7} and {int(each.any(1).argmax()) for each in drawn} == {0, 1}
    assert (drawn[3] == task.prepare(sample, np.random.default_rng(3), None)["hidden"]).all()
    assert (np.stack(drawn).any((0, 1))).all()  # every patch at some time


@pytest.mark.parametrize(
    ("backbone", "fields", "words"),
    [
        ("resnet", {}, "objective.backbone: backbone 'image': it is of type resnet, which has no token in the"),
        ("vit", {"hidden_from": 0.01, "hidden_to": 0.05}, "objective.hidden_to: value 0.05 hides none of the 16 whole"),
        ("vit", {"hidden_from": 0.6}, "hidden_from 0.6 is above hidden_to 0.5"),
    ],
)
def test_what_cannot_hide_is_refused(
    backbone: str, fields: dict[str, Any], words: str, objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Ibot.preset, "backbones", {"image": backbone})
    with pytest.raises((ConfigError, ValueError), match=words):
        objective(Ibot, "ibot", **fields)
