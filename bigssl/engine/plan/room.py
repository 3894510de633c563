"""What to change where a rank holds more than it needs, or more than its device has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from bigssl.config.recipe import Recipe
from bigssl.engine import zero
from bigssl.engine.plan.memory import FP32, Memory
from bigssl.files import GIB


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
