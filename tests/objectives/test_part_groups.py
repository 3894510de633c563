"""Groups and constraints of the parts of a joint objective."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigssl.config.errors import ConfigError
from bigssl.config.optim import Group, OptimConfig
from bigssl.engine.constraints import check_constraints
from bigssl.engine.optim import parameter_groups
from bigssl.nets.constraint import Constraint
from bigssl.objectives.base import discover


def test_patterns_of_a_part_apply_to_that_part(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`^head` means the part's own head, not that of another part; a pattern may have alternatives."""
    monkeypatch.setattr(discover()["mlm"], "groups", lambda self: [Group(pattern="^head.dense|^nothing", lr=3.0)])
    monkeypatch.setattr(discover()["simclr"], "groups", lambda self: [Group(pattern="weight", clip=0.5)])
    task = objective(discover()["joint"], "joint")
    names = {parameter: name for name, parameter in task.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in parameter_groups(task, OptimConfig(lr=1.0)):
        found.setdefault(group["lr"], set()).update(names[p] for p in group["params"])
        for parameter in group["params"]:
            mine = names[parameter].startswith("parts.views.") and "weight" in names[parameter]
            assert (group["clip"] == 0.5) == mine, names[parameter]
    assert found[3.0] == {"parts.words.head.dense.weight", "parts.words.head.dense.bias"}
    monkeypatch.setattr(discover()["mlm"], "groups", lambda self: [Group(pattern="^image_projection")])
    with pytest.raises(ConfigError, match=r"groups\(\) of parts.words.pattern: .* nearest: parts.words"):
        parameter_groups(task, OptimConfig())


def test_a_shared_backbone_is_reached_by_each_of_its_names(objective: Any) -> None:
    """Its parameters stand first under `parts.views`, and are those of `parts.captions` too."""
    task = objective(discover()["joint"], "joint")
    config = OptimConfig.model_validate({"groups": [{"pattern": r"^parts\.captions\.image\.", "lr": 2.0}], "lr": 1.0})
    shared = set(task.parts["captions"].image.parameters())
    for group in parameter_groups(task, config):
        assert {parameter in shared for parameter in group["params"]} == {group["lr"] == 2.0}


def test_constraints_of_parts_are_those_of_the_whole(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        discover()["clip"], "constraints", lambda self: [Constraint([self.log_scale], torch.Tensor.sin)]
    )
    task = objective(discover()["joint"], "joint")
    (constraint,) = task.constraints()
    assert constraint.parameters[0] is task.parts["captions"].log_scale


def test_mistakes_of_a_task_call_it_as_recipes_do(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its class has another name: two words."""
    kind = discover()["replaced_token"]
    monkeypatch.setattr(kind, "groups", lambda self: [Group(pattern="^nothing")])
    monkeypatch.setattr(kind, "constraints", lambda self: [Constraint([torch.nn.Parameter(torch.ones(1))], abs)])
    task = objective(kind, "replaced_token")
    with pytest.raises(ConfigError, match=r"^groups\(\) of replaced_token\.pattern: value '\^nothing' matches no"):
        parameter_groups(task, OptimConfig())
    with pytest.raises(ConfigError, match=r"^constraints\(\) of replaced_token: a parameter of shape \(1,\) is not"):
        check_constraints(task)


@pytest.mark.parametrize("name", ["train", "v1.0", "a/b"])
def test_a_part_that_torch_cannot_name_is_refused(name: str, objective: Any) -> None:
    with pytest.raises(ConfigError, match=rf"objective\.parts: name '{name}'; allowed: letters"):
        objective(discover()["joint"], "joint", parts={name: {"name": "mlm"}})
