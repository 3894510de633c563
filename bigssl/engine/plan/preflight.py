"""Everything that can be known to fail before anything is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig, Recipe
from bigssl.data.errors import DataError, display
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.loading import process
from bigssl.data.order.order import Order
from bigssl.data.order.sequential import SequentialStream
from bigssl.data.remote.backends import is_secret
from bigssl.data.remote.cache import DiskCache
from bigssl.engine import zero
from bigssl.engine.constraints import check_constraints
from bigssl.engine.groups import check_groups
from bigssl.engine.launcher import free_port, port_taken
from bigssl.engine.plan.evaluation import check_evaluation, refuse_seen
from bigssl.engine.plan.facts import facts, refuse_unlike_checkpoint
from bigssl.engine.plan.folder import check_folder, check_room, refuse_foreign, room
from bigssl.engine.plan.order import refuse_twice, repeats
from bigssl.engine.plan.pairing import begin_from, refuse_other_network, reports_of_folders
from bigssl.engine.plan.passes import examine
from bigssl.engine.plan.sources import source_config, source_order, split_batch
from bigssl.engine.plan.start_from import Beginning
from bigssl.engine.resume import (
    flat,
    notes_of_length,
    refuse_changed_length,
    refuse_changed_recipe,
    taken_over,
)
from bigssl.engine.stepping.split import (
    check_cached,
    check_passes,
    check_weighing,
    notes_of_cached,
    notes_of_queue,
)
from bigssl.nets import towers
from bigssl.nets.build import postponed, refuse_derived
from bigssl.objectives.base import Objective, build, exported_heads, exported_networks


@dataclass(frozen=True)
class Plan:
    """What a recipe means on a world of ranks: samples per rank and pass, passes per step, streams, the task; `notes`
    are what to know of it."""

    micro: int
    accum: int
    world: int
    sizes: dict[str, int]
    streams: dict[str, Order]
    objective: Objective
    backbones: dict[str, towers.Tower]
    bf16: bool
    notes: list[str] = field(default_factory=list)
    beginning: Beginning | None = None


def plan(recipe: Recipe, world: int, change: Sequence[str] = ()) -> Plan:
    """Check a recipe against the files it names and build its networks; no process group is needed.

    For ZeRO-3 the backbones have no numbers yet: the engine fills them layer by layer, in slices.

    From here on this process reads data as the recipe says.

    Args:
        change: fields in which the recipe differs on purpose from that of the run in its folder.
    Raises:
        ConfigError: field, value, what is allowed.
    """
    process.use_data_settings(recipe.data)
    recipe = taken_over(recipe)
    micro, accum = split_batch(recipe, world)
    zero.check_zero(recipe)
    torch.manual_seed(recipe.seed)
    in_slices = postponed(main=os.environ.get("RANK", "0") == "0") if recipe.zero.stage == 3 else nullcontext()
    with in_slices:
        objective, built = build_networks(recipe)
    refuse_derived(objective)
    if (beginning := begin_from(recipe)) is not None:
        beginning.take(objective, built)
    check_groups(objective, recipe)
    check_constraints(objective)
    check_evaluation(recipe, evaluated_towers(objective, built), exported_heads(objective))
    check_folder(recipe)
    refuse_foreign(recipe)
    refuse_secrets(recipe)
    check_cache(recipe)
    sizes = batch_sizes(recipe, objective)
    streams = {name: source_order(recipe, name, sizes[name], accum * world) for name in sizes}
    for name, order in streams.items():
        refuse_twice(name, repeats(order))
    refuse_seen(recipe, {name: order.indexes.values() for name, order in streams.items()})
    check_cached(recipe, objective)
    check_weighing(recipe, objective)
    check_passes(recipe, objective, sizes, accum)
    check_draws(objective, streams)
    refuse_changed_recipe(recipe, change)
    refuse_changed_length(recipe, objective, change)
    refuse_unlike_checkpoint(recipe, facts(accum, world, streams, built, objective))
    check_room(recipe, room(objective, recipe))
    looked = examine(recipe, (objective, built), streams, sizes, accum, lambda: build_networks(recipe))
    for warning in looked.warnings if os.environ.get("RANK", "0") == "0" else ():
        print(f"bigssl: warning: {warning}", file=sys.stderr, flush=True)
    if looked.failures:
        raise ConfigError(*looked.failures)
    notes = notes_of_length(recipe, objective) + (beginning.notes() if beginning is not None else [])
    notes += reports_of_folders(recipe, built.values()) + notes_of_cached(recipe, objective, accum)
    notes += notes_of_queue(objective, streams)
    return Plan(micro, accum, world, sizes, streams, objective, built, wants_bf16(recipe), notes, beginning)


def build_networks(recipe: Recipe) -> tuple[Objective, dict[str, towers.Tower]]:
    """The task and its backbones, with weights on the current default device.

    Raises:
        ConfigError: field, value, what is allowed.
    """
    for name, backbone in recipe.backbones.items():
        towers.check_backbone(name, backbone)
    beginning = begin_from(recipe)
    built = {name: _tower(name, config, beginning) for name, config in recipe.backbones.items()}
    objective = build(recipe.objective, built)
    if beginning is not None:
        beginning.check(objective, built)
    _refuse_unused(objective, built)
    _refuse_still_teachers(objective, built)
    return objective, built


def _tower(name: str, config: BackboneConfig, beginning: Beginning | None) -> towers.Tower:
    tokenizer = _tokenizer(name, config)
    if beginning is not None:
        refuse_other_network(beginning, name, towers.hf_config(f"backbones.{name}", config, tokenizer), tokenizer)
    meta = torch.get_default_device().type == "meta"  # where weights would only be counted
    return towers.Tower(name, config, tokenizer, None if beginning is None or meta else beginning.weights(name))


def evaluated_towers(objective: Objective, built: Mapping[str, towers.Tower]) -> dict[str, towers.Tower]:
    """By the name of each exported network, the tower whose kind and input it has: what may be evaluated."""
    return {name: built[network.backbone] for name, network in exported_networks(objective, built).items()}


def batch_sizes(recipe: Recipe, objective: Objective) -> dict[str, int]:
    """Samples a step by source, over all ranks. Raises ConfigError for a source that the recipe does not have."""
    sizes = {name: source_config(recipe, name).batch or recipe.batch.size for name in objective.sources()}
    unused = sorted(set(recipe.data.sources) - set(sizes))
    if unused:
        read = ", ".join(sizes)
        raise ConfigError(f"data.sources.{unused[0]}: not read by the objective, which reads {read}; remove it")
    return sizes


def drawing(objective: Objective) -> dict[str, str]:
    """Sources of which samples draw further ones, each with the name of a task that has them do so."""
    parts = [part for part in objective.modules() if isinstance(part, Objective) and part.draws_more]
    return {source: part.config.name for part in parts for source in part.sources()}


def check_draws(objective: Objective, orders: Mapping[str, Order]) -> None:
    """Refuse sources that have no other sample to draw."""
    for source, name in drawing(objective).items():
        order, where = orders[source], f"data.sources.{source}"
        if isinstance(order, SequentialStream):
            raise ConfigError(
                f"{where}.sequential: value true, but {name} draws further samples, and this source is read from front "
                f"to back; allowed: one with an index (`bigssl shards index`)"
            )
        for dataset, index in order.indexes.items():
            if len(index) < 2:
                field = f"{where}.mix.{dataset}" if dataset else f"{where}.url"
                raise ConfigError(
                    f"{field}: {display(index.url)} holds {len(index)} sample, but {name} draws another one beside "
                    f"each; allowed: >= 2 samples"
                )


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


def check_cache(recipe: Recipe) -> None:
    """Refuse a folder for remote shards that cannot be written to."""
    remote = recipe.data.remote
    if remote.cache is not None:
        try:
            DiskCache(remote.cache, round(remote.cache_gb * 1e9)).close()
        except DataError as error:
            raise ConfigError(str(error)) from None


def check_port() -> None:
    """Refuse a port of the launcher on which another program listens. Rank 0 is the one that will listen there, where
    not torchrun's agent does."""
    if "RANK" not in os.environ or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    if os.environ["RANK"] != "0":
        return
    port = os.environ.get("MASTER_PORT", "")
    if why := port_taken(port):
        raise ConfigError(
            f"--master_port: value {port}: {why}; allowed: a free port, for example "
            f"--master_port {free_port()}"
        )


def _refuse_unused(objective: Objective, built: Mapping[str, towers.Tower]) -> None:
    """A backbone that no objective reaches would be exported as if trained."""
    reached = {id(module) for module in objective.modules()}
    for name, tower in built.items():
        if id(tower) not in reached:
            raise ConfigError(f"backbones.{name}: not used by the objective; remove it, or name it in the objective")


def _refuse_still_teachers(objective: Objective, built: Mapping[str, towers.Tower]) -> None:
    """A teacher of what is never trained would stay as it is."""
    for name, teacher in objective.teachers().items():
        within = {id(module) for module in teacher.student.modules()}
        followed: dict[str, nn.Module] = {f"backbones.{key}": t for key, t in built.items() if id(t.model) in within}
        for where, student in (followed or {"objective": teacher.student}).items():
            if not any(parameter.requires_grad for parameter in student.parameters()):
                raise ConfigError(
                    f"{where}: all of it is frozen, but teacher {name!r} of the objective follows it and would never "
                    f"move; allowed: a network with trained parameters"
                )


def announced_world() -> int:
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
