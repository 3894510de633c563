"""Are the DeepSpeed settings of a recipe used by DeepSpeed at its stage, and does nothing of a run get lost by them?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe
from bigssl.engine.knobs.fields import KNOBS, OFFLOAD, Knob

OFFLOADS = ("offload_optimizer", "offload_param")


def check_knobs(recipe: Recipe, canonical: Mapping[str, str]) -> None:
    """Refuse options that DeepSpeed would ignore at the recipe's stage, or under which a run would lose something.

    Args:
        canonical: each name of an option, with the one that KNOBS has for it.
    Raises:
        ConfigError: field, value, stage, what is allowed and why; a line for each.
    """
    given = {canonical[name]: (name, value) for name, value in recipe.zero.options.items()}
    found = list(_idle_or_refused(recipe.zero.stage, given))
    found = found or list(_together(recipe, given))  # where one of two has no effect at all, that is said
    if found:
        raise ConfigError(*found)


def idle_at(stage: int, name: str) -> bool:
    """Whether DeepSpeed reads the option `name` (as KNOBS has it) at other stages only."""
    return stage not in KNOBS[name].stages


def _idle_or_refused(stage: int, given: Mapping[str, tuple[str, Any]]) -> Iterator[str]:
    for name, (written, value) in given.items():
        if said := _mistake(KNOBS[name], f"zero.options.{written}", value, stage):
            yield said
        elif name in OFFLOADS and isinstance(value, Mapping):
            for field, setting in {"device": "none", **value}.items():
                if said := _mistake(OFFLOAD[field], f"zero.options.{written}.{field}", setting, stage):
                    yield said


def _mistake(knob: Knob, field: str, value: Any, stage: int) -> str:
    """What is wrong with the value of a field; empty if nothing is."""
    if knob.refused and (knob.allowed is None or value != knob.allowed):
        allowed = "to leave it out" if knob.allowed is None else knob.allowed
        why = "it would stay on the device; leave the whole section out" if value == "none" else knob.refused
        return f"{field}: value {value!r}; allowed: {allowed} ({why})"
    if stage not in knob.stages:
        where = " or ".join(map(str, knob.stages))
        said = f"{field}: value {value!r} has no effect at zero.stage {stage}"
        return f"{said}; allowed: zero.stage {where}, or without it"
    return ""


def _together(recipe: Recipe, given: Mapping[str, tuple[str, Any]]) -> Iterator[str]:
    """What does not go with the rest of the recipe."""
    stage, optim = recipe.zero.stage, recipe.optim
    values = {name: value for name, (_, value) in given.items()}
    written = {name: f"zero.options.{as_given}" for name, (as_given, _) in given.items()}

    def beside(name: str, why: str, allowed: str = "without it") -> str:
        return f"{written[name]}: value {values[name]!r} {why}; allowed: {allowed}"

    if "offload_optimizer" in values and optim.name != "adamw":
        yield f"zero.options.offload_optimizer: given with optim.name {optim.name}; allowed: adamw"
    if "offload_param" in values and "offload_optimizer" not in values:
        yield beside("offload_param", "without offload_optimizer: DeepSpeed moves weights to the host where their "
                     "optimizer is there", "offload_optimizer={device: cpu} beside it")  # fmt: skip
    if stage in (1, 2) and values.get("contiguous_gradients") is False and "offload_optimizer" in values:
        yield beside("contiguous_gradients", "has no effect beside offload_optimizer, which needs them contiguous")
    if values.get("reduce_scatter") is False and "use_multi_rank_bucket_allreduce" in values:
        yield beside("use_multi_rank_bucket_allreduce", "has no effect beside reduce_scatter=false")
    if values.get("reduce_scatter") is True and stage == 3 and optim.name == "muon":
        yield beside("reduce_scatter", "with muon at zero.stage 3, which orthogonalises whole gradients", "false")
    if values.get("allgather_sequential") is True:
        for name in ("prefetch_bucket_size", "use_all_reduce_for_fetch_params"):
            if name in values:
                yield beside(name, "has no effect beside stage3_allgather_sequential=true")
    if recipe.zero.communication_data_type == "bf16" and stage == 3 and recipe.precision != "fp32":
        yield (
            f"zero.communication_data_type: value bf16 with precision {recipe.precision} at zero.stage 3, where "
            "DeepSpeed would gather weights in it too, also for teachers and exports; allowed: fp32, or another stage"
        )
    size = values.get("allgather_bucket_size", 2)
    if isinstance(size, int) and (size < 2 or size % 2):
        yield beside("allgather_bucket_size", f"at zero.stage {stage}", "an even number of elements, 2 or more")
    if optim.name == "muon" and stage in (1, 2) and optim.clip:
        yield (
            f"optim.clip: value {optim.clip}; allowed: 0 with muon at zero.stage {stage} (DeepSpeed "
            f"orthogonalises gradients there before they could be clipped), or zero.stage=0 or 3"
        )
