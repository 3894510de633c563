"""Bytes per rank by ZeRO stage, counted as DeepSpeed allocates them (a test compares with its tensors).

All weights are fp32, also in bf16 runs, which compute under autocast. With N elements in all, T of them trained, W
ranks, and S optimizer states per element (AdamW and LAMB 2; LARS and SGD 1; Muon 1 for matrices, 2 for the rest):

    component           stage 0  stage 1                           stage 2                    stage 3
    parameters          4N       4N                                4N                         4N/W + small layers
    fp32 master copies  –        4T/W                              4T/W                       4T/W
    optimizer states    4ST      4ST/W                             4ST/W                      4ST/W
    gradients           4T       as stage 2; 4T with accumulation  layers that touch a slice  4T/W
    communication       –        reduce bucket                     reduce bucket              bucket + gathered layers
    teachers            4 per element and buffers, whole on every rank at every stage
    bf16 copies         2 per element of a weight that autocast casts, at every stage

A reduce bucket is an eighth of 4T, but at least 16 MiB (or 4T), the largest tensor, and at most 1.9 GiB, unless the
recipe says otherwise; at stages 1 and 2 there are two of them (overlap_comm).
Small layers (stage3_param_persistence_threshold) stay whole. A slice is rounded up where W does not divide its group
(one group a layer with LAMB and LARS). A layer that is cut between two slices keeps its whole gradient on both ranks.
Gathered layers are an upper bound: DeepSpeed keeps them up to max_live_parameters. Temporaries of the optimizer step
(and what is gathered at stage 3 to move teachers) are not counted: they come when the activations have gone. Before the
first step each rank holds 4N, the buffers and the teachers at stages 0 to 2; at stage 3 its slices (4N/W), the buffers,
the teachers and one layer, the largest: backbones are made layer by layer, and cut (see nets/build.py). Two things are
whole on the host then: what an objective puts on its backbones, and on rank 0 a backbone that is read from a folder
(of safetensors, as pages of files, which the system takes back when it needs them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.config.optim import WITHOUT_BETAS
from bigssl.config.recipe import Recipe
from bigssl.engine import zero
from bigssl.engine.optim import TorchGroup, parameter_groups
from bigssl.files import GIB
from bigssl.nets.build import largest_layer
from bigssl.objectives.base import Objective

FP32, BF16 = 4, 2
CAST = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class Memory:
    """Bytes per rank by component, on the device and on the host.

    construction: what the device holds at most while networks are made. preparation: what the host does meanwhile."""

    device: dict[str, int]
    host: dict[str, int]
    construction: int
    preparation: int

    @property
    def total(self) -> int:
        """Of the device, when it holds most: in a step, or before the first one."""
        return max(sum(self.device.values()), self.construction)


def memory(objective: nn.Module, recipe: Recipe, *, stage: int, world: int, accum: int, bf16: bool) -> Memory:
    """What weights, gradients and optimizer take on one rank (the fullest), without activations."""
    settings, groups = zero.settings_of(recipe, stage, objective), parameter_groups(objective, recipe.optim)
    ranks = world if stage else 1
    shapes = [[parameter.numel() for parameter in group["params"]] for group in groups]
    by_layer = stage == 3
    slices = [sum(-(-n // ranks) for n in sizes) if by_layer else -(-sum(sizes) // ranks) for sizes in shapes]
    states = [states_per_element(recipe, group) * part for group, part in zip(groups, slices, strict=True)]
    everything = [parameter.numel() for parameter in objective.parameters()]
    whole = sum(n for n in everything if n <= settings.persistent) if stage == 3 and ranks > 1 else 0
    elements = {
        "parameters": sum(everything) if stage < 3 else sum(-(-n // ranks) for n in everything) + whole,
        "fp32 master copies": sum(slices) if stage else 0,
        "optimizer states": sum(states),
        "gradients": _gradients(shapes, stage, ranks, accum),
        "communication": settings.buckets + (min(sum(everything) - whole, settings.live) if stage == 3 else 0),
    }
    sizes = {name: FP32 * count for name, count in elements.items()}
    sizes["teachers"] = taught_bytes(objective)
    sizes["bf16 copies"] = BF16 * sum(weight.numel() for weight in cast_weights(objective)) if bf16 else 0
    outside = (["fp32 master copies", "optimizer states"] if settings.optimizer_on_host else []) + (
        ["parameters"] if settings.parameters_on_host else []
    )
    host = {name: sizes[name] for name in outside}
    device = {name: 0 if name in host else size for name, size in sizes.items()}
    loads, taught = any(section.init_from for section in recipe.backbones.values()), taught_bytes(objective)
    return Memory(device, host, construction(objective, stage, ranks) + taught,
                  preparation(objective, stage, loads=loads) + taught)  # fmt: skip


def construction(objective: nn.Module, stage: int, ranks: int) -> int:
    """Bytes on a device, at most, from the first weight to the last: all, or slices and a layer."""
    buffers = sum(buffer.nbytes for buffer in objective.buffers())
    if stage < 3:
        return buffers + sum(parameter.nbytes for parameter in objective.parameters())
    slices = sum(-(-p.numel() // ranks) * p.element_size() for p in objective.parameters())
    return buffers + slices + max(largest_layer(objective), *(p.nbytes for p in objective.parameters()))


def preparation(objective: nn.Module, stage: int, *, loads: bool) -> int:
    """As `construction`, on the host of rank 0, where networks are made. loads: whether any is read from a folder."""
    if stage < 3 or loads:
        return construction(objective, 0, 1)
    networks = [module for module in objective.modules() if isinstance(module, PreTrainedModel)]
    described = {id(p): p.nbytes for network in networks for p in network.parameters()}
    return construction(objective, 0, 1) - sum(described.values()) + largest_layer(objective)


def taught_bytes(objective: nn.Module) -> int:
    """Of all teachers, which are no submodules."""
    teachers = objective.teachers().values() if isinstance(objective, Objective) else ()
    modules = [teacher.module for teacher in teachers]
    return sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))


def states_per_element(recipe: Recipe, group: TorchGroup) -> int:
    """How many numbers the optimizer keeps for each element of a group."""
    return 1 if recipe.optim.name in WITHOUT_BETAS or group.get("use_muon") else 2


def cast_weights(module: nn.Module) -> list[Tensor]:
    """The weights of which autocast keeps a bf16 copy for the length of a forward pass."""
    return list({id(m.weight): m.weight for m in module.modules() if isinstance(m, CAST)}.values())


def _gradients(shapes: list[list[int]], stage: int, ranks: int, accum: int) -> int:
    """Elements of gradients held after the last backward pass of a step (stage 1: after the one before)."""
    if stage == 0 or (stage == 1 and accum > 1):
        return sum(map(sum, shapes))
    if stage == 3:
        return sum(-(-n // ranks) for sizes in shapes for n in sizes)
    held = np.zeros(ranks, dtype=np.int64)
    for sizes in shapes:
        stops = np.cumsum(sizes)
        part = -(-int(stops[-1]) // ranks)
        first = np.searchsorted(stops, np.arange(ranks) * part, side="right")
        last = np.searchsorted(stops, (np.arange(ranks) + 1) * part, side="left")
        begins = np.concatenate([[0], stops])
        held += begins[np.minimum(last + 1, len(sizes))] - begins[np.minimum(first, len(sizes))]
    return int(held.max())


def checkpoint_bytes(objective: nn.Module, recipe: Recipe) -> int:
    """Size of one checkpoint over all ranks' files: weights (not at stage 3), master copies (from stage 1), states,
    teachers."""
    groups = parameter_groups(objective, recipe.optim)
    trained = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
    states = sum(states_per_element(recipe, group) * n for group, n in zip(groups, trained, strict=True))
    weights = sum(p.numel() for p in objective.parameters()) if recipe.zero.stage < 3 else 0
    return FP32 * (weights + states + (sum(trained) if recipe.zero.stage else 0)) + taught_bytes(objective)


def large_bucket(objective: nn.Module, recipe: Recipe) -> list[str]:
    """A warning where the recipe asks for a reduce bucket that is larger than all gradients, and than 256 MiB."""
    buckets = zero.settings_of(recipe, recipe.zero.stage, objective).buckets
    asked, trained = recipe.zero.options.get("reduce_bucket_size", 0), sum(p.numel() for p in _trained(objective))
    if not buckets or asked <= trained or FP32 * buckets <= GIB // 4:
        return []
    return [
        f"zero.options.reduce_bucket_size: value {asked}: {FP32 * buckets / GIB:.1f} GiB of buckets for "
        f"{FP32 * trained / GIB:.2f} GiB of gradients; leave it out: by default a bucket holds these"
    ]


def too_much(held: Mapping[int, Memory], objective: nn.Module, recipe: Recipe, micro: Mapping[str, int], accum: int,
             device_bytes: int) -> str:  # fmt: skip
    """The failure of a rank that needs more than its device holds, with the first change that fits.

    Args:
        held: by ZeRO stage, activations included.
        micro: samples of a rank and pass, by source.
    """
    stage = recipe.zero.stage
    if (built := held[stage].construction) > device_bytes:
        how = "in slices, a layer at a time" if stage == 3 else "whole"
        change = "zero.stage=3 or " if held[3].total <= device_bytes else ""
        return (
            f"backbones: a rank holds the networks {how}, before the first step, {built / GIB:.2f} GiB, the device "
            f"{device_bytes / GIB:.2f}; smallest change: {change}a larger device, or smaller networks"
        )
    kept = held[stage].device["activations (estimate)"]
    rest = sum(held[stage].device.values()) - kept
    largest = max(p.numel() for p in _trained(objective))
    spared = FP32 * (zero.settings_of(recipe, stage, objective).buckets - 2 * largest)  # there may be two
    fits = spared > 0 and rest + kept - spared <= device_bytes
    bucket = [f"zero.options.reduce_bucket_size={largest}"] if fits else []
    stages = [f"zero.stage={s}" for s in held if s > stage and held[s].total <= device_bytes]
    splits = [k for k in range(2, min(micro.values()) + 1) if all(m % k == 0 for m in micro.values())]
    accums = [f"batch.accum={accum * k}" for k in splits if rest + kept / k <= device_bytes]
    change = " or ".join(bucket + stages[:1] + accums[:1]) or (
        "a larger device, backbones.NAME.activation_checkpointing=true, or more ranks at zero.stage=3"
    )
    return (
        f"zero.stage: a rank needs about {held[stage].total / GIB:.2f} GiB at stage {stage}, the device holds "
        f"{device_bytes / GIB:.2f}; smallest change: {change}"
    )


def _trained(objective: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in objective.parameters() if parameter.requires_grad]
