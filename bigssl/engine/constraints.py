"""Constraints on trainable weights: checked before a run, applied to whole weights by `Engine.step`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bigssl.config.errors import ConfigError
from bigssl.nets.constraint import Constraint
from bigssl.objectives.base import Objective, task_name


def check_constraints(objective: nn.Module) -> list[Constraint]:
    """The constraints of an objective; none of another module.

    Raises:
        ConfigError: a parameter is not the objective's, frozen or constrained twice.
    """
    if not isinstance(objective, Objective):
        return []
    names = {parameter: name for name, parameter in objective.named_parameters()}
    constraints, kind, seen = objective.constraints(), task_name(type(objective)), set()
    for parameter in (p for constraint in constraints for p in constraint.parameters):
        if parameter not in names:
            raise ConfigError(f"constraints() of {kind}: a parameter of shape {tuple(parameter.shape)} is not its own")
        if not parameter.requires_grad:
            raise ConfigError(f"constraints() of {kind}: {names[parameter]} is frozen; allowed: trained parameters")
        if parameter in seen:
            raise ConfigError(f"constraints() of {kind}: {names[parameter]} is constrained twice; allowed: once")
        seen.add(parameter)
    return constraints


@torch.no_grad()
def apply_constraints(constraints: Sequence[Constraint]) -> None:
    """Replace each constrained weight, which is whole here, by its function's value.

    Raises:
        ValueError: a function gives another shape.
    """
    for constraint in constraints:
        for parameter in constraint.parameters:
            value = constraint.function(parameter.data)
            if value.shape != parameter.shape:
                shapes = f"{tuple(parameter.shape)} -> {tuple(value.shape)}"
                raise ValueError(f"a constraint changes the shape of a parameter ({shapes}); allowed: the same shape")
            parameter.data.copy_(value)
