"""The recipe: typed sections, YAML files, `a.b=c` overrides, and errors that name field, value and nearest match.

A recipe is read once, before any process group, file or model exists; what passes here can be started. The sections
of the pretext tasks live with the tasks (`bigssl/objectives/*.py`, class `Config`), those of the evaluations with the
evaluations (`bigssl/transfer/tasks/*.py`); they are handed in by the caller, so that a new one brings its own fields
without an edit here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, create_model, field_validator, model_validator

from bigssl.config.conflicts import conflicts
from bigssl.config.errors import ConfigError, describe
from bigssl.config.evaluate import Evaluation, ProbeConfig, named_sections, probe_model
from bigssl.config.limits import Limits
from bigssl.config.optim import OptimConfig
from bigssl.config.section import Fraction, PositiveInt
from bigssl.config.section import Section as Section
from bigssl.config.yaml import apply_override, filled_in, read_mapping

Attention = Literal["eager", "sdpa", "flash_attention_2"]
NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"


class BackboneConfig(Section):
    """One network: a transformers model type with its own configuration fields, or a size by its name, built from
    scratch or loaded.

    What it takes follows from the fields: pictures (size, beside it channels and window), text (tokenizer, length),
    series (channels, length) or sound (rate, length). `config` takes the fields of that type's transformers
    configuration class, e.g. `hidden_sizes` for `resnet`.
    """

    type: str = Field(
        description="transformers model type, e.g. resnet, vit, bert, or a size by its name: resnet-18 to resnet-101, "
        "the same for 32 pixels (resnet-18-cifar), vit-tiny to vit-large, convnext-tiny to convnext-large"
    )
    config: dict[str, Any] = Field(default_factory=dict, description="fields of the transformers configuration class")
    init_from: str | None = Field(
        None, description="folder to start from instead of random weights: of transformers (or a hub name), of timm, "
        "or another run's export; fields under config replace those of its network"
    )
    allow_partial: bool = Field(
        False, description="tensors that init_from lacks, or has in other shapes, are made anew"
    )
    tokenizer: str | None = Field(None, description="tokenizer.json or tokenizer folder of a text backbone")
    size: PositiveInt | None = Field(None, description="image side in pixels of an image backbone")
    length: PositiveInt | None = Field(
        None, description="tokens per sequence of a text backbone, steps of a series, samples of a sound"
    )
    channels: PositiveInt | None = Field(
        None, description="values per step of a series backbone; of an image backbone 1 (pictures are made grey) or 3 "
        "(the default: grey ones are repeated)"
    )
    window: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        None, description="of an image backbone: [low, high], the stored values that become 0 and 255 of grey pictures "
        "of more than 8 bits; default of unsigned 16-bit ones [0, 65535], others have none"
    )
    rate: PositiveInt | None = Field(None, description="samples per second of an audio backbone")
    attention: Attention | None = Field(
        None, description="attention implementation; eager is the fastest for short sequences on a CPU"
    )
    activation_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    compile: bool = Field(False, description="run the backbone through torch.compile")

    @field_validator("window")
    @classmethod
    def _rises(cls, window: list[float] | None) -> list[float] | None:
        if window is not None and not window[0] < window[1]:
            raise ValueError("[low, high] with low < high is needed")
        return window

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_run(cls, values: Any) -> Any:
        """In run folders that were begun before it had this name, `init_from` stands as `pretrained`."""
        if isinstance(values, dict) and "pretrained" in values and "init_from" not in values:
            return {name: value for name, value in values.items() if name != "pretrained"} | {
                "init_from": values["pretrained"]}  # fmt: skip
        return values


class MixedConfig(Section):
    """One dataset of a mixture."""

    url: str = Field(description="folder with index.json, or tars: data-{000..127}.tar, data-*.tar, a.tar::b.tar")
    weight: Annotated[float, Field(gt=0)] = Field(1.0, description="share of the samples, relative to other weights")


class WindowsConfig(Section):
    """Rows of long series as samples."""

    length: PositiveInt = Field(description="rows of a window; objectives draw the length of their backbone from it")
    stride: PositiveInt | None = Field(None, description="rows from one window to the next; default: length")
    short: Literal["refuse", "drop", "whole"] = Field("refuse", description="what becomes of series of fewer rows")


class SourceConfig(Section):
    """One stream of WebDataset shards: of one dataset (url), or of several by weight (mix)."""

    url: str | None = Field(
        None, min_length=1,
        description="folder with index.json, or tars: data-{000..127}.tar, data-*.tar, a.tar::b.tar, ~, $VAR",
    )
    mix: dict[str, MixedConfig] | None = Field(
        None, min_length=1, description="datasets by a name of your choice, each with url and weight"
    )
    power: Fraction = Field(0.0, description="mix: weights are times the number of samples to this power")
    batch: PositiveInt | None = Field(None, description="samples per step from this source; default batch.size")
    min_shards: PositiveInt = Field(1, description="refuse to start with fewer shards (of each dataset) than this")
    sequential: bool = Field(False, description="read tars without an index, packed ones or pipe:COMMAND in order")
    samples: PositiveInt | None = Field(None, description="sequential: number of samples of the whole source")
    windows: WindowsConfig | None = Field(
        None, description="each stored series (npy) is many samples of so many rows, read by their bytes"
    )
    rates: Literal["one", "mixed"] = Field("one", description="mixed: series of several sampling rates are meant")

    @model_validator(mode="after")
    def _one_kind(self) -> SourceConfig:
        if (self.url is None) == (self.mix is None):
            given = "neither is" if self.url is None else "both are"
            raise ValueError(f"exactly one of url and mix is needed; {given} given")
        if self.mix is None:
            self.refuse_idle("with url, which is one dataset", "power")
        if self.sequential != (self.samples is not None) or (self.sequential and self.url is None):
            raise ValueError(
                "sequential=true needs url and samples, the number of samples in all shards (positions, epochs and "
                "equal steps of all ranks rest on it); samples is for sequential sources only"
            )
        if self.sequential and self.windows is not None:
            raise ValueError("windows: rows are read by range, which sequential=true cannot; `bigssl shards index` "
                             "makes the tars readable")  # fmt: skip
        bad = [name for name in self.mix or {} if not re.fullmatch(NAME, name)]
        if bad:
            raise ValueError(f"mix: dataset name {bad[0]!r}; allowed: letters, digits and . _ - (it is part of keys)")
        return self

    @property
    def urls(self) -> dict[str, str]:
        """URL by the field below the source that gives it."""
        if self.mix is None:
            return {"url": self.url or ""}
        return {f"mix.{name}.url": dataset.url for name, dataset in self.mix.items()}


class RemoteConfig(Section):
    """How shards behind http(s), s3, gs and other URLs are read."""

    retries: Annotated[int, Field(ge=0)] = Field(6, description="further attempts after a transient failure")
    timeout: Annotated[float, Field(gt=0)] = Field(60, description="seconds of one attempt")
    deadline: Annotated[float, Field(gt=0)] = Field(600, description="seconds of all attempts of one read")
    connections: PositiveInt = Field(16, description="reads at the same time, per loader process")
    gap: Annotated[int, Field(ge=0)] = Field(1 << 16, description="bytes between two ranges that are read as one")
    ahead_mb: PositiveInt = Field(128, description="MiB read ahead into memory, per loader process")
    cache: str | None = Field(None, description="local folder that keeps what was read; may be shared by all ranks")
    cache_gb: Annotated[float, Field(gt=0)] = Field(100, description="size of the cache in 10^9 bytes")
    chunk_mb: PositiveInt = Field(8, description="MiB of a shard that the cache fetches and keeps as one piece")
    storage: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="fsspec options by protocol, e.g. {s3: {endpoint_url: ...}}; no credentials"
    )


class DataConfig(Section):
    sources: dict[str, SourceConfig]
    workers: Annotated[int, Field(ge=0)] = Field(1, description="loader processes per rank; 0: none")
    lanes: PositiveInt = Field(256, description="logical readers, at least; up to 2^20 samples there are 4096 or more")
    shuffle_window: PositiveInt = Field(1024, description="samples of a lane shuffled together, × lanes in all")
    on_error: Literal["raise", "skip"] = "raise"
    max_errors: Annotated[int, Field(ge=0)] = Field(
        100, description="different bad samples of a run, over all ranks and resumes, that `skip` accepts"
    )
    limits: Limits = Limits()
    ledger: bool = Field(False, description="write the keys of every step to ledger-rankN.jsonl in the run folder")
    watchdog: Annotated[float, Field(ge=0)] = Field(
        300, description="seconds without a batch after which a rank says what it waits for; 0: never"
    )
    watchdog_abort: Annotated[float, Field(ge=0)] = Field(
        0, description="seconds without a batch that end the run; 0: a slow run is never ended"
    )
    remote: RemoteConfig = RemoteConfig()


class BatchConfig(Section):
    """size = micro × accum × world. Give `size`, and `micro` or `accum` where memory asks for it."""

    size: PositiveInt = Field(description="samples per optimizer step over all ranks")
    micro: PositiveInt | None = Field(None, description="samples per rank and forward pass")
    accum: PositiveInt | None = Field(None, description="forward passes per optimizer step")
    cached: bool = Field(
        False, description="a contrastive loss compares the samples of all passes of a step (GradCache): each passes "
        "twice, once for its embedding, once for its gradient"
    )


class ZeroConfig(Section):
    stage: Literal[0, 1, 2, 3] = 1
    communication_data_type: Literal["fp32", "bf16"] = Field("fp32", description="of gradients between ranks")
    options: dict[str, Any] = Field(default_factory=dict, description="further DeepSpeed zero_optimization fields")


class CheckpointConfig(Section):
    every: PositiveInt = Field(500, description="steps between checkpoints; one is always written at the end")
    keep: PositiveInt = Field(2, description="newest checkpoints kept")
    keep_every: PositiveInt | None = Field(None, description="also keep every checkpoint whose step divides by this")
    on_full: Literal["stop", "wait"] = Field("stop", description="when one does not fit: end the run, or wait for room")


class Recipe(Section):
    """Everything a run depends on. `objective` is replaced by the discriminated union of the discovered tasks, and so
    are the sections of `probe` and `evaluate`, by the names under which they are reported."""

    name: str = Field(pattern=NAME)
    out: str = Field("", description="run folder; default runs/NAME")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    fill: dict[str, str | None] = Field(
        default_factory=dict, description="words that stand for {NAME} in the strings of the recipe, so that one "
        "override moves it to other data: {root: DIR, label: FIELD}; resolved recipes have none"
    )
    steps: PositiveInt
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the device computes in it")
    log_every: PositiveInt = Field(1, description="steps between metric records and stop checks")
    start_from: str | None = Field(
        None, min_length=1, description="export (runs/NAME/export) whose networks and heads a new run begins with"
    )
    objective: Any
    backbones: dict[str, BackboneConfig] = Field(min_length=1)
    data: DataConfig
    batch: BatchConfig
    optim: OptimConfig = OptimConfig()
    zero: ZeroConfig = ZeroConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    probe: ProbeConfig | None = None
    evaluate: dict[str, Evaluation] | None = None

    @model_validator(mode="before")
    @classmethod
    def _evaluations_have_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return values | {name: named_sections(name, values[name]) for name in ("probe", "evaluate") if name in values}

    @model_validator(mode="after")
    def _works_together(self) -> Recipe:
        if found := conflicts(self):
            raise ValueError("\n".join(found))  # `describe` makes a line of each
        return self

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/{self.name}")


def recipe_model(objectives: Any, evaluations: Any = None) -> type[Recipe]:
    """Recipe with `objective` typed as the union of task sections (see `bigssl.objectives.base.config_union`), and
    `probe` and `evaluate` by that of evaluations (`bigssl.transfer.discovery.evaluation_union`); without it, a recipe
    has neither."""
    fields: dict[str, Any] = {"objective": (objectives, ...), "probe": (None, None), "evaluate": (None, None)}
    if evaluations is not None:
        fields |= {"probe": (probe_model(evaluations) | None, None), "evaluate": (dict[str, evaluations] | None, None)}
    return create_model("Recipe", __base__=Recipe, **fields)


def load_recipe(path: str | Path, overrides: list[str], model: type[Recipe]) -> Recipe:
    """Read a YAML recipe, apply `a.b=c` overrides (values are YAML), validate.

    Raises:
        ConfigError: one line per mistake: field, value, what is allowed, nearest match.
    """
    values = read_mapping(Path(path))
    for override in overrides:
        apply_override(values, override, str(path))
    try:
        return model.model_validate(filled_in(values, str(path)))
    except ValidationError as error:
        raise ConfigError(*describe(error, str(path), model.model_json_schema())) from None


def allowing_partial(recipe: Recipe) -> Recipe:
    """`recipe` in which every network that begins with a folder may take a part of it (`--allow-partial`).

    Raises:
        ConfigError: no network does.
    """
    begun = {name: section.model_copy(update={"allow_partial": True})
             for name, section in recipe.backbones.items() if section.init_from}  # fmt: skip
    if not begun:
        raise ConfigError("--allow-partial: no backbone of the recipe has init_from; allowed: without --allow-partial")
    return recipe.model_copy(update={"backbones": recipe.backbones | begun})


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, defaults included; loads back to an equal recipe."""
    return yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False)
