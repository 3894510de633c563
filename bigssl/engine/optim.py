"""Optimizers, parameter groups and the learning-rate schedule (a pure function of the step: nothing to save)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from bigssl.config.recipe import OptimConfig
from bigssl.engine.layerwise import Lamb, Lars

Group = dict[str, Any]


def schedule(config: OptimConfig, step: int, steps: int) -> float:
    """Learning-rate factor of step `step` (0 ≤ step < steps): linear warm-up, then the named shape down to `final`.

    cosine: Loshchilov and Hutter 2017; wsd (warm-up, stable, decay): Hu et al. 2024; polynomial: (1 − t)^power.
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup) / max(steps - config.warmup, 1)
    if config.schedule == "wsd":
        progress = max(0.0, (step - steps * (1 - config.decay)) / (steps * config.decay))
        shape = 1 - progress
    elif config.schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        shape = (1 - progress) ** config.power
    return config.final + (1 - config.final) * shape


def set_learning_rate(groups: list[Group], factor: float) -> None:
    """lr = base × factor, where a group's base is its `initial_lr` (also what survives in a checkpoint)."""
    for group in groups:
        group["lr"] = group["initial_lr"] * factor


def parameter_groups(module: nn.Module, config: OptimConfig) -> list[Group]:
    """Trainable parameters by treatment. Norms, biases and scales (fewer than two dimensions) are not decayed."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if config.name == "muon":
        return _muon_groups(module, named, config)
    decayed = [p for _, p in named if p.dim() > 1]
    plain = [p for _, p in named if p.dim() <= 1]
    groups: list[Group] = [
        {"params": decayed, "weight_decay": config.weight_decay, "adapt": True},
        {"params": plain, "weight_decay": 0.0, "adapt": False},
    ]
    if config.name in ("lamb", "lars"):  # one group a layer, see layerwise.py
        groups = [{**group, "params": [p]} for group in groups for p in group["params"]]
    else:
        groups = [{k: v for k, v in group.items() if k != "adapt"} for group in groups]
    return [{**group, "lr": config.lr, "initial_lr": config.lr} for group in groups if group["params"]]


def _muon_groups(module: nn.Module, named: list[tuple[str, nn.Parameter]], config: OptimConfig) -> list[Group]:
    """Hidden matrices to Muon; embeddings, convolutions, norms and biases to AdamW at `adam_lr`."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for _, parameter in named:
        parameter.use_muon = parameter.dim() == 2 and id(parameter) not in embeddings  # type: ignore[attr-defined]
    adam_lr = config.adam_lr or config.lr
    shared = {"use_muon": False, "lr": adam_lr, "initial_lr": adam_lr, "betas": config.betas, "eps": config.eps}
    adam = [p for _, p in named if not p.use_muon]  # type: ignore[attr-defined]
    groups: list[Group] = [
        {
            "params": [p for _, p in named if p.use_muon],  # type: ignore[attr-defined]
            "use_muon": True,
            "lr": config.lr,
            "initial_lr": config.lr,
            "momentum": config.momentum,
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in adam if p.dim() > 1], "weight_decay": config.weight_decay, **shared},
        {"params": [p for p in adam if p.dim() <= 1], "weight_decay": 0.0, **shared},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, config: OptimConfig, *, sharded: bool) -> torch.optim.Optimizer:
    """The optimizer of the recipe over `module`'s trainable parameters.

    Args:
        sharded: ZeRO stage ≥ 1, the optimizer will see slices (matters to lamb and lars).
    """
    groups = parameter_groups(module, config)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    if config.name == "lamb":
        return Lamb(groups, lr=config.lr, betas=config.betas, eps=config.eps, sharded=sharded)
    if config.name == "lars":
        return Lars(groups, lr=config.lr, momentum=config.momentum, sharded=sharded)
    from bigssl.engine.zero import muon

    return muon(groups)
