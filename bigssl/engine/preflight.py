"""Everything that can be known to fail before anything is started."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from bigssl.config import BackboneConfig, Recipe
from bigssl.config_errors import ConfigError
from bigssl.data import process
from bigssl.data.backends import is_secret
from bigssl.data.order import Order
from bigssl.data.text import load_tokenizer
from bigssl.engine import zero
from bigssl.engine.preflight_evaluation import check_evaluation, refuse_seen
from bigssl.engine.preflight_sources import source_config, source_order, split_batch
from bigssl.engine.resume import facts, flat, refuse_changed_recipe, refuse_unlike_checkpoint, taken_over
from bigssl.nets import towers
from bigssl.objectives.base import Objective, build


@dataclass(frozen=True)
class Plan:
    """What a recipe means on a world of ranks: samples per rank and pass, passes per step, streams, the task."""

    micro: int
    accum: int
    world: int
    sizes: dict[str, int]
    streams: dict[str, Order]
    objective: Objective
    backbones: dict[str, towers.Tower]
    bf16: bool


def plan(recipe: Recipe, world: int) -> Plan:
    """Check a recipe against the files it names and build its networks; no process group is needed.

    From here on this process reads data as the recipe says.

    Raises:
        ConfigError: field, value, what is allowed.
    """
    process.use(recipe.data)
    recipe = taken_over(recipe)
    micro, accum = split_batch(recipe, world)
    zero.check(recipe)
    torch.manual_seed(recipe.seed)
    objective, built = build_networks(recipe)
    check_evaluation(recipe, built, set(objective.export_heads()))
    check_folder(recipe)
    refuse_secrets(recipe)
    sizes = batch_sizes(recipe, objective)
    streams = {name: source_order(recipe, name, sizes[name], accum * world) for name in sizes}
    refuse_seen(recipe, streams)
    refuse_changed_recipe(recipe)
    refuse_unlike_checkpoint(recipe, facts(accum, world, streams, built))
    return Plan(micro, accum, world, sizes, streams, objective, built, wants_bf16(recipe))


def build_networks(recipe: Recipe) -> tuple[Objective, dict[str, towers.Tower]]:
    """The task and its backbones, with weights on the current default device.

    Raises:
        ConfigError: field, value, what is allowed.
    """
    for name, backbone in recipe.backbones.items():
        towers.check(name, backbone)
    built = {
        name: towers.Tower(name, config, _tokenizer(name, config)) for name, config in recipe.backbones.items()
    }
    objective = build(recipe.objective, built)
    _refuse_unused(objective, built)
    return objective, built


def batch_sizes(recipe: Recipe, objective: Objective) -> dict[str, int]:
    """Samples a step by source, over all ranks. Raises ConfigError for a source that the recipe does not have."""
    return {name: source_config(recipe, name).batch or recipe.batch.size for name in objective.sources()}


def wants_bf16(recipe: Recipe) -> bool:
    """Resolve `precision: auto`: bf16 on GPUs that have it and on CPUs with bf16 dot products."""
    if recipe.precision != "auto":
        return recipe.precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def refuse_secrets(recipe: Recipe) -> None:
    """The recipe is copied into the run folder, in clear."""
    for name, value in flat(recipe.data.remote.storage, "data.remote.storage").items():
        if is_secret(name.rpartition(".")[2], value):
            raise ConfigError(
                f"{name}: a credential, which the run folder would show; allowed: the client's own settings "
                "(environment, ~/.aws, ~/.netrc, application default credentials)"
            )


def _tokenizer(name: str, config: BackboneConfig) -> PreTrainedTokenizerFast | None:
    if config.tokenizer is None:
        return None
    try:
        return load_tokenizer(config.tokenizer)
    except Exception as error:  # tokenizers raises bare exceptions
        raise ConfigError(f"backbones.{name}.tokenizer: value {config.tokenizer!r}: {error}") from None


def check_folder(recipe: Recipe) -> None:
    """Refuse a run folder that cannot be written to."""
    existing = next(path for path in [recipe.folder, *recipe.folder.absolute().parents] if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):  # permission bits tell root nothing
            pass
    except OSError as error:
        raise ConfigError(f"out: value {str(recipe.folder)!r}: {existing} cannot be written to ({error})") from None


def _refuse_unused(objective: Objective, built: Mapping[str, towers.Tower]) -> None:
    """A backbone that no objective reaches would be exported as if trained."""
    reached = {id(module) for module in objective.modules()}
    for name, tower in built.items():
        if id(tower) not in reached:
            raise ConfigError(f"backbones.{name}: not used by the objective; remove it, or name it in the objective")


def world_size() -> int:
    """Ranks the launcher announced, before any process group exists.

    Raises:
        ConfigError: many tasks were started, but not as ranks of one run: each would train alone into one folder.
    """
    if "RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1"))
    for name in ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if int(os.environ.get(name) or 1) > 1:
            value = os.environ[name]
            raise ConfigError(f"{name}: value {value}, but RANK is not set; start with deepspeed or torchrun")
    return 1
