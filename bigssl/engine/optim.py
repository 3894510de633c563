"""Optimizers, parameter groups and the learning-rate schedule (a pure function of the step: nothing to save)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from bigssl.config.optim import WITHOUT_BETAS, Group, OptimConfig
from bigssl.engine.groups import REST, Treatment, asked_groups, base_rate, treatments
from bigssl.engine.layerwise import Lamb, Lars

TorchGroup = dict[str, Any]


def schedule(config: OptimConfig, step: int, steps: int) -> float:
    """Learning-rate factor of step `step` (0 ≤ step < steps): linear warm-up, then the named shape down to `final`.

    cosine: Loshchilov and Hutter 2017; wsd (warm-up, stable, decay): Hu et al. 2024; polynomial: (1 − t)^power.
    """
    if step < (warmup := config.warmup_steps(steps)):
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(steps - warmup, 1)
    if config.schedule == "wsd":
        progress = max(0.0, (step - steps * (1 - config.decay)) / (steps * config.decay))
        shape = 1 - progress
    elif config.schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        shape = (1 - progress) ** config.power
    return config.final + (1 - config.final) * shape


def set_learning_rate(groups: list[TorchGroup], factor: float) -> None:
    """lr = base × factor, where a group's base is its `initial_lr` (also what survives in a checkpoint)."""
    for group in groups:
        group["lr"] = group["initial_lr"] * factor


def parameter_groups(module: nn.Module, config: OptimConfig) -> list[TorchGroup]:
    """Trainable parameters by treatment (see groups.py), those that no group asks for first.

    Each has, beside its optimizer's settings, `clip_group` and `clip`: the norm is taken over all groups of one
    clip_group together (see clipping.py).

    Raises:
        ConfigError: what groups ask for cannot be had.
    """
    members: dict[Treatment, list[nn.Parameter]] = {}
    for parameter, treatment in treatments(module, config).items():
        if config.name == "muon":
            parameter.use_muon = treatment.muon  # type: ignore[attr-defined] # where DeepSpeed looks
        members.setdefault(treatment, []).append(parameter)
    asked = [each.group for each in asked_groups(module, config)]
    groups: list[TorchGroup] = []
    for treatment in sorted(members, key=lambda t: (t.role, not t.muon, not t.decayed, -t.factor)):
        groups.append({"params": members[treatment], **settings_of_group(treatment, asked, config)})
    return groups


def settings_of_group(treatment: Treatment, asked: list[Group], config: OptimConfig) -> TorchGroup:
    """The settings of an optimizer group, without its parameters."""
    own = asked[treatment.role] if treatment.role != REST else None
    rate = base_rate(config, treatment) * treatment.factor
    decay = config.weight_decay if own is None or own.weight_decay is None else own.weight_decay
    clips_alone = own is not None and own.clip is not None
    settings: TorchGroup = {
        "lr": rate, "initial_lr": rate, "weight_decay": decay if treatment.decayed else 0.0,
        "clip": own.clip if own is not None and clips_alone else config.clip,
        "clip_group": treatment.role if clips_alone else REST,
    }  # fmt: skip
    if config.name == "muon":
        settings["use_muon"] = treatment.muon
    if config.name in WITHOUT_BETAS or treatment.muon:
        settings["momentum"] = config.momentum
    else:
        settings |= {"betas": own.betas if own is not None and own.betas is not None else config.betas}
        settings |= {"eps": config.eps}
    if config.name in ("lamb", "lars"):
        settings["adapt"] = treatment.decayed
    return settings


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of the recipe over `module`'s trainable parameters. Raises ConfigError, as `parameter_groups`."""
    groups = parameter_groups(module, config)
    if config.name == "adamw":
        # fused: the others make several tensors as large as all weights on their way
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    if config.name == "lamb":
        return Lamb(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    if config.name == "lars":
        return Lars(groups, lr=config.lr, momentum=config.momentum, trust=config.trust)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    from bigssl.engine.zero import muon

    return muon(groups)
