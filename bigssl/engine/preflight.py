"""Everything that can be known to fail before anything is started."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerFast

from bigssl.config import BackboneConfig, Recipe, SourceConfig, dump_recipe
from bigssl.config_errors import ConfigError, nearest
from bigssl.data.stream import Stream
from bigssl.data.text import load_tokenizer
from bigssl.engine import zero
from bigssl.engine.preflight_evaluation import check_evaluation, load_index
from bigssl.nets import towers
from bigssl.objectives.base import Objective, build

RESUMABLE_CHANGES = {
    "out", "log_every", "checkpoint", "probe", "evaluate", "data.workers", "data.on_error", "data.max_errors",
    "data.limits",
    "data.ledger", "data.watchdog", "data.watchdog_abort",
    "data.remote",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a recipe means on a world of ranks: samples per rank and pass, passes per step, streams, the task."""

    micro: int
    accum: int
    world: int
    sizes: dict[str, int]
    streams: dict[str, Stream]
    objective: Objective
    backbones: dict[str, towers.Tower]
    bf16: bool


def plan(recipe: Recipe, world: int) -> Plan:
    """Check a recipe against the files it names and build its networks; no process group is needed.

    Raises:
        ConfigError: field, value, what is allowed.
    """
    micro, accum = split_batch(recipe, world)
    for name, backbone in recipe.backbones.items():
        towers.check(name, backbone)
    zero.check(recipe)
    torch.manual_seed(recipe.seed)
    built = build_towers(recipe)
    objective = build(recipe.objective, built)
    _refuse_unused(objective, built)
    check_evaluation(recipe, built, set(objective.export_heads()))
    _check_folder(recipe)
    sizes, streams = open_sources(recipe, objective, accum * world)
    _refuse_changed_recipe(recipe)
    return Plan(micro, accum, world, sizes, streams, objective, built, wants_bf16(recipe))


def build_towers(recipe: Recipe) -> dict[str, towers.Tower]:
    """The backbones of a recipe by name, on torch's default device. Raises ConfigError."""
    return {name: towers.Tower(name, config, _tokenizer(name, config)) for name, config in recipe.backbones.items()}


def open_sources(recipe: Recipe, objective: Objective, parts: int) -> tuple[dict[str, int], dict[str, Stream]]:
    """(samples per step, stream) of each source that `objective` reads; `parts` = accum × world has to divide the
    samples. Raises ConfigError."""
    sizes = {name: _source(recipe, name).batch or recipe.batch.size for name in objective.sources()}
    return sizes, {name: _stream(recipe, name, sizes[name], parts) for name in sizes}


def split_batch(recipe: Recipe, world: int) -> tuple[int, int]:
    """(micro, accum) with size = micro × accum × world."""
    batch = recipe.batch
    accum = batch.accum or (max(1, batch.size // (batch.micro * world)) if batch.micro else 1)
    micro = batch.micro or batch.size // (accum * world)
    if micro * accum * world != batch.size:
        fitting = [m for m in range(1, batch.size + 1) if batch.size % (m * world) == 0]
        near = sorted(fitting, key=lambda m: abs(m - micro))[:3]
        allowed = f"batch.micro {', '.join(map(str, sorted(near)))}" if near else f"a batch.size divisible by {world}"
        raise ConfigError(
            f"batch.size: value {batch.size} is not micro {micro} × accum {accum} × world {world} = "
            f"{micro * accum * world}; allowed: {allowed}"
        )
    return micro, accum


def wants_bf16(recipe: Recipe) -> bool:
    """Resolve `precision: auto`: bf16 on GPUs that have it and on CPUs with bf16 dot products."""
    if recipe.precision != "auto":
        return recipe.precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def _source(recipe: Recipe, name: str) -> SourceConfig:
    names = sorted(recipe.data.sources)
    if name not in recipe.data.sources:
        allowed = ", ".join(names)
        raise ConfigError(f"objective: no source {name!r} under data.sources; allowed: {allowed}{nearest(name, names)}")
    return recipe.data.sources[name]


def _stream(recipe: Recipe, name: str, size: int, parts: int) -> Stream:
    source, where = _source(recipe, name), f"data.sources.{name}"
    if size % parts:
        raise ConfigError(f"{where}.batch: value {size}; allowed: a multiple of accum × world = {parts}")
    index = load_index(source.url, f"{where}.url")
    if len(index.shards) < source.min_shards:
        raise ConfigError(f"{where}.url: {len(index.shards)} shards in {source.url}; allowed: >= {source.min_shards}")
    if len(index) < size:
        raise ConfigError(
            f"{where}.batch: value {size}, but {source.url} holds {len(index)} samples in {len(index.shards)} shards; "
            f"allowed: <= {len(index)} (a batch would hold one sample twice)"
        )
    data = recipe.data
    return Stream(index, seed=recipe.seed, lanes=data.lanes, window=data.shuffle_window, source=name,
                  on_error=data.on_error, max_errors=data.max_errors)  # fmt: skip


def _tokenizer(name: str, config: BackboneConfig) -> PreTrainedTokenizerFast | None:
    if config.tokenizer is None:
        return None
    try:
        return load_tokenizer(config.tokenizer)
    except Exception as error:  # tokenizers raises bare exceptions
        raise ConfigError(f"backbones.{name}.tokenizer: value {config.tokenizer!r}: {error}") from None


def _check_folder(recipe: Recipe) -> None:
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


def _refuse_changed_recipe(recipe: Recipe) -> None:
    """The same folder means resume: refuse a recipe whose maths differs, naming the fields."""
    path = recipe.folder / "config.yaml"
    if not path.exists():
        return
    before, now = _flat(yaml.safe_load(path.read_text())), _flat(yaml.safe_load(dump_recipe(recipe)))
    differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    allowed = RESUMABLE_CHANGES | ({"steps"} if recipe.optim.schedule == "constant" else set())
    fixed = [k for k in differing if not any(k == c or k.startswith(c + ".") for c in allowed)]
    if fixed:
        changes = "; ".join(f"{key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in fixed)
        raise ConfigError(
            f"out: {recipe.folder} holds a run with another recipe ({changes}); allowed: the same values, or another "
            f"folder, for example out={recipe.folder}-2"
        )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


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
