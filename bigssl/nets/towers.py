"""Backbones: transformers models built from a recipe section, with what an objective needs to know of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from bigssl.config.errors import ConfigError, nearest
from bigssl.config.recipe import BackboneConfig
from bigssl.nets import build
from bigssl.nets.chance import dropout
from bigssl.nets.chance.attention import attention_by_sample
from bigssl.nets.folders import check_pretrained, check_tokenizer, other_normalisation, with_network_folder
from bigssl.nets.fused import fuse_activations
from bigssl.nets.modality import MODALITIES
from bigssl.nets.modality.fields import check_fields, modality_for
from bigssl.nets.modality.kinds import CAUSAL, STILL, unused_parameters
from bigssl.nets.modality.pixels import COLOURS
from bigssl.nets.norm import has_batch_norm, with_global_batch_norm
from bigssl.nets.pool import mean_of
from bigssl.nets.pretrained import found_in
from bigssl.nets.sound.strides import without_rests
from bigssl.nets.timm.folders import is_of_timm, timm_config
from bigssl.nets.vision.sizes import NAMED, refuse_other_size, with_named_size
from bigssl.nets.weightless import feature_size


class Tower(nn.Module):
    """The backbone `name` of a run. `model` is the bare transformers model that is exported; `dim` its feature size.

    Attributes:
        model: the transformers model.
        dim: features per sample.
        modality: "image", "text", "series" or "audio", a name in MODALITIES.
        size: image side in pixels; 0 where it takes no pictures, as for the following.
        length: tokens per text, steps per series or samples per sound.
        channels: values per step of a series; of pictures 3, or 1.
        window: stored values of deep grey pictures that become 0 and 255; None: as `pictures.image` says.
        rate: samples of sound per second.
        folder: what it began with (`init_from`), or None. partial: what that lacks may be made anew.
        begun: what was read of it (`init_from`), in a sentence; "" where nothing was, or by another rank.
    """

    def __init__(
        self, name: str, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None, weights: str | None = None
    ) -> None:
        """weights: a folder with those of just this network, where `config` does not say it."""
        super().__init__()
        where, given = f"backbones.{name}", config
        config = with_network_folder(name, with_named_size(config))
        check_fields(where, config)
        row = modality_for(where, config)
        self.modality = row.name
        self._tokenizer = tokenizer
        hf = hf_config(where, config, tokenizer)
        _refuse_one_sided(where, hf)
        refuse_other_size(where, given, hf)
        self.size, self.length = config.size or 0, config.length or 0
        self.channels, self.rate = config.channels or (COLOURS if self.size else 0), config.rate or 0
        self.window = None if config.window is None else (config.window[0], config.window[1])
        field = f"{where}.init_from" if config.init_from else f"{where}.config"
        self.dim = feature_size(
            field, hf, lambda: row.trial(config, tokenizer), lambda model, inputs: mean_of(*row.run(model, inputs)),
            lambda model: row.check(where, model, config, tokenizer),
        )  # fmt: skip
        self.model = _build(where, config, hf, weights)
        self.folder, self.partial = config.init_from, config.allow_partial
        self.begun = _begun(where, config, self.model)
        _freeze_unused(self.model)
        if has_batch_norm(self.model):
            with_global_batch_norm(self.model)
        without_rests(self.model)
        if config.compile:
            self.model.compile()

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states [B, T, dim] of collated samples, named as in nets/modality/table.py."""
        return MODALITIES[self.modality].hidden(self.model, batch)

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Features [B, dim] of collated samples: the mean of the hidden states that are not padding."""
        return MODALITIES[self.modality].features(self.model, batch)

    def twin(self) -> Tower:
        """Another tower, not trained, with weights, buffers and settings of its own that are equal to these now."""
        return build.twin(self)

    @property
    def sees(self) -> str:
        """What a token sees: "both" its sides, or those "before" it only."""
        return "before" if self.model.config.model_type in CAUSAL else "both"

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Of a text backbone; ValueError for another."""
        if self._tokenizer is None:
            raise ValueError(f"{type(self.model).__name__} is an {self.modality} backbone: it has no tokenizer")
        return self._tokenizer

    @property
    def vocabulary(self) -> int:
        """Rows of the token embedding (known also while ZeRO-3 holds it in slices)."""
        return int(self.model.config.vocab_size)

    @property
    def token_embedding(self) -> nn.Parameter:
        """Input embedding [V, dim], for heads tied to it."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, nn.Parameter)
        return weight


def hf_config(where: str, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None) -> PreTrainedConfig:
    """The transformers configuration of a backbone; `where` is its recipe field, for errors.

    The size of the vocabulary and the ids of the special tokens are the tokenizer's, sizes and lengths the recipe's;
    what would hide parts of the input by a generator of the process is off.

    Raises:
        ConfigError: unknown type, field or value, with the nearest match; a value that contradicts these.
    """
    config = with_named_size(config)
    if config.type not in CONFIG_MAPPING:
        hint = nearest(config.type, sorted([*CONFIG_MAPPING.keys(), *NAMED]))
        raise ConfigError(f"{where}.type: value {config.type!r}; allowed: a transformers model type, or a name of "
                          f"bigssl/nets/vision/sizes.py{hint}")  # fmt: skip
    row = modality_for(where, config)
    if config.init_from is not None:
        loaded = _config_in(where, config.type, config.init_from)
        if not config.config:
            return loaded
        known = loaded.to_dict()
        return _made(where, type(loaded), known | config.config, config.config, _allowed(where, type(loaded), known,
                                                                                         config.config))  # fmt: skip
    kind = CONFIG_MAPPING[config.type]
    defaults = kind().to_dict()
    allowed = _allowed(where, kind, defaults, config.config)
    fields = config.config | row.settings(where, config, tokenizer, {name: defaults[name] for name in allowed})
    return _made(where, kind, fields, config.config, allowed)


def _allowed(where: str, kind: type[PreTrainedConfig], defaults: Collection[str], given: Collection[str]) -> list[str]:
    """Fields of a configuration. Raises ConfigError where one of those `given` is none."""
    allowed = sorted(set(defaults) - {"transformers_version", "model_type", "architectures"})
    for field in given:
        if field not in allowed:
            raise ConfigError(f"{where}.config.{field}: unknown field of {kind.__name__}{nearest(field, allowed)}")
    return allowed


def _made(
    where: str, kind: type[PreTrainedConfig], fields: Mapping[str, Any], given: Mapping[str, Any], allowed: list[str]
) -> PreTrainedConfig:
    try:
        return kind(**(dict(fields) | _still(where, given, allowed)))
    except ConfigError:
        raise
    except Exception as error:  # transformers raises types of its own for a wrong field
        raise ConfigError(f"{where}.config: {' '.join(str(error).split())[:300]}") from None


def _still(where: str, given: Mapping[str, Any], allowed: Collection[str]) -> dict[str, Any]:
    """The fields of STILL that a configuration has."""
    found = {field: value for field, value in STILL.items() if field in allowed}
    for field, value in found.items():
        if given.get(field, value) != value:
            raise ConfigError(
                f"{where}.config.{field}: value {given[field]!r}; allowed: {value} (it hides by a generator of the "
                f"process, so that the loss would depend on the number of ranks)"
            )
    return found


def _config_in(where: str, kind: str, pretrained: str) -> PreTrainedConfig:
    try:
        loaded: PreTrainedConfig = timm_config(pretrained, kind) if is_of_timm(pretrained) else (
            AutoConfig.from_pretrained(pretrained))  # fmt: skip
    except ConfigError as error:
        raise ConfigError(f"{where}.init_from: value {pretrained!r}: {error}") from None
    except Exception as error:  # transformers raises whatever it met
        raise ConfigError(
            f"{where}.init_from: value {pretrained!r}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from None
    if loaded.model_type != kind:
        raise ConfigError(f"{where}.type: value {kind!r}; allowed: {loaded.model_type}, which {pretrained} holds")
    for field, value in STILL.items():
        if hasattr(loaded, field):
            setattr(loaded, field, value)
    return loaded


def _refuse_one_sided(where: str, hf: PreTrainedConfig) -> None:
    """A masked token would be predicted from those before it only, and nothing else would tell."""
    for field in ("is_decoder", "causal"):
        if getattr(hf, field, False):
            raise ConfigError(f"{where}.config.{field}: value true; allowed: false (a {hf.model_type} sees both sides)")


def check_backbone(name: str, config: BackboneConfig) -> None:
    """Refuse what can be seen before anything is loaded or built."""
    where = f"backbones.{name}"
    config = with_network_folder(name, with_named_size(config))
    check_pretrained(where, config)
    if config.allow_partial and config.init_from is None:
        raise ConfigError(f"{where}.allow_partial: value true without init_from; allowed: false, or both")
    check_tokenizer(where, config)
    check_fields(where, config)


def _build(where: str, config: BackboneConfig, hf: PreTrainedConfig, weights: str | None) -> PreTrainedModel:
    model = _load_or_create(where, config, hf, weights)
    attention_by_sample(model, where)
    fuse_activations(model)
    if config.activation_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(f"{where}.activation_checkpointing: {type(model).__name__} has none; allowed: false")
        _recompute(model)
    return model.train()  # from_pretrained gives a model in eval mode: no dropout, no activation checkpointing


def _load_or_create(
    where: str, config: BackboneConfig, hf: PreTrainedConfig, weights: str | None
) -> PreTrainedModel:
    field = f"{where}.init_from: value {config.init_from!r}" if config.init_from else f"{where}.config"
    field, folder = (f"start_from: {weights}", weights) if weights else (field, config.init_from)
    options = {"attn_implementation": config.attention} if config.attention else {}
    try:
        return build.load_network(where, folder, hf, partial=config.allow_partial, **options) if folder else (
            build.create(where, hf, **options)
        )
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from None
    except Exception as error:  # transformers raises whatever it met
        raise ConfigError(f"{field}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from None


def _begun(where: str, config: BackboneConfig, model: PreTrainedModel) -> str:
    found = found_in(model) if config.init_from is not None else None
    return "" if found is None else f"{where}.init_from: {config.init_from}: {found.said()}" \
        f"{_changed(where, config)}{other_normalisation(str(config.init_from))}"


def _changed(where: str, config: BackboneConfig) -> str:
    """What the recipe has otherwise than the folder: weights that fit may then be of another function."""
    before = _config_in(where, config.type, str(config.init_from)).to_dict() if config.config else {}
    changed = [f"{field} {value} in place of {before.get(field)}" for field, value in config.config.items()
               if before.get(field) != value]  # fmt: skip
    return f"; with another {', '.join(changed)} (from {where}.config) they may compute something else" * bool(changed)


def _recompute(model: PreTrainedModel) -> None:
    renamed = hasattr(model, "activation_checkpointing_enable")  # since transformers 5.21
    enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": dropout.recomputing})


def _freeze_unused(model: PreTrainedModel) -> None:
    """Weight decay would shrink what gets no gradient."""
    for name in unused_parameters(model):
        model.get_parameter(name).requires_grad_(False)
