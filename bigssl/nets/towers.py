"""Backbones: transformers models built from a recipe section, with what an objective needs to know of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config import BackboneConfig
from bigssl.config_errors import ConfigError, nearest
from bigssl.nets import dropout
from bigssl.nets.norm import has_batch_norm, with_global_batch_norm
from bigssl.nets.pool import normalise, pooled


class Tower(nn.Module):
    """The backbone `name` of a run. `model` is the bare transformers model that is exported; `dim` its feature size.

    Attributes:
        model: the transformers model.
        dim: features per sample.
        size: image side in pixels, 0 for text.
        length: tokens per sequence, 0 for images.
    """

    def __init__(self, name: str, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self.model = _build(f"backbones.{name}", config, tokenizer)
        self.size = config.size or int(getattr(self.model.config, "image_size", 0) or 0)
        self.length = config.length or 0
        self.dim = _feature_size(self.model.config)
        _freeze_pooler(self.model)
        if has_batch_norm(self.model):
            with_global_batch_norm(self.model)
        if config.compile:
            self.model.compile()

    @property
    def is_text(self) -> bool:
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Of a text backbone; ValueError for an image backbone."""
        if self._tokenizer is None:
            raise ValueError(f"{type(self.model).__name__} is an image backbone: it has no tokenizer")
        return self._tokenizer

    def images(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> features [B, dim]."""
        values = normalise(pixels)
        if has_batch_norm(self.model):
            values = values.contiguous(memory_format=torch.channels_last)
        return pooled(self.model, {"pixel_values": values})

    def text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [B, T] twice -> features [B, dim]."""
        return pooled(self.model, {"input_ids": input_ids, "attention_mask": attention_mask})

    def tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [B, T] twice -> last hidden states [B, T, dim]."""
        hidden: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden

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


def hf_config(where: str, config: BackboneConfig, vocab_size: int | None = None) -> PreTrainedConfig:
    """The transformers configuration of a backbone; `where` is its recipe field, for errors.

    Raises:
        ConfigError: unknown type, field or value, with the nearest match.
    """
    if config.type not in CONFIG_MAPPING:
        hint = nearest(config.type, sorted(CONFIG_MAPPING.keys()))
        raise ConfigError(f"{where}.type: value {config.type!r}; allowed: a transformers model type{hint}")
    kind = CONFIG_MAPPING[config.type]
    allowed = sorted(set(kind().to_dict()) - {"transformers_version", "model_type", "architectures"})
    for field, value in config.config.items():
        if field not in allowed:
            hint = nearest(field, allowed)
            raise ConfigError(f"{where}.config.{field}: unknown field (value {value!r}) of {kind.__name__}{hint}")
    fields: dict[str, Any] = dict(config.config)
    if vocab_size is not None:
        fields.setdefault("vocab_size", vocab_size)
    if config.size and "image_size" in allowed:
        fields.setdefault("image_size", config.size)
    try:
        return kind(**fields)
    except Exception as error:  # transformers raises types of its own for a wrong field
        raise ConfigError(f"{where}.config: {' '.join(str(error).split())[:300]}") from None


def check(name: str, config: BackboneConfig) -> None:
    """Refuse what cannot be built, before anything is started. See `hf_config`."""
    where = f"backbones.{name}"
    if config.pretrained is None:
        hf_config(where, config)
    elif config.config:
        raise ConfigError(f"{where}.config: given beside pretrained {config.pretrained!r}; allowed: one of the two")
    if config.tokenizer is not None and not Path(config.tokenizer).exists():
        raise ConfigError(f"{where}.tokenizer: no file {config.tokenizer}; train one with `bigssl tokenizer train`")
    if config.tokenizer is not None and config.length is None:
        raise ConfigError(f"{where}.length: missing; a text backbone needs its tokens per sequence, e.g. 128")
    if config.tokenizer is None and config.size is None:
        raise ConfigError(f"{where}: neither size (image side in pixels) nor tokenizer (text) is given; allowed: one")


def _build(where: str, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None) -> PreTrainedModel:
    model = _load_or_create(where, config, len(tokenizer) if tokenizer else None)
    _check_kind(where, model, config, tokenizer)
    dropout.attention_by_sample(model, where)
    if config.activation_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(f"{where}.activation_checkpointing: {type(model).__name__} has none; allowed: false")
        _recompute(model)
    return model.train()  # from_pretrained gives a model in eval mode: no dropout, no activation checkpointing


def _load_or_create(where: str, config: BackboneConfig, vocabulary: int | None) -> PreTrainedModel:
    field = f"{where}.pretrained: value {config.pretrained!r}" if config.pretrained else f"{where}.config"
    options = {"attn_implementation": config.attention} if config.attention else {}
    hf = None if config.pretrained else hf_config(where, config, vocabulary)
    try:
        if config.pretrained:
            loaded: PreTrainedModel = AutoModel.from_pretrained(config.pretrained, dtype=torch.float32, **options)
            return loaded
        created: PreTrainedModel = AutoModel.from_config(hf, **options)
        return created
    except Exception as error:  # transformers raises whatever it met
        raise ConfigError(f"{field}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from None


def _check_kind(
    where: str, model: PreTrainedModel, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None
) -> None:
    wanted = "input_ids" if tokenizer else "pixel_values"
    if model.main_input_name != wanted:
        raise ConfigError(
            f"{where}.type: {type(model).__name__} takes {model.main_input_name}, not {wanted}; a text backbone has a "
            f"tokenizer and length, an image backbone a size"
        )
    if tokenizer is None:
        return
    rows, longest = model.config.vocab_size, getattr(model.config, "max_position_embeddings", None)
    if rows < len(tokenizer):
        raise ConfigError(f"{where}.config.vocab_size: value {rows}; allowed: >= {len(tokenizer)} (the tokenizer)")
    if longest is not None and config.length is not None and config.length > longest:
        raise ConfigError(f"{where}.length: value {config.length}; allowed: <= {longest} (max_position_embeddings)")


def _recompute(model: PreTrainedModel) -> None:
    renamed = hasattr(model, "activation_checkpointing_enable")  # since transformers 5.21
    enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": dropout.recomputing})


def _feature_size(config: PreTrainedConfig) -> int:
    sizes = getattr(config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else config.hidden_size)


def _freeze_pooler(model: PreTrainedModel) -> None:
    """BERT's and ViT's pooler is not part of our features; frozen, it stays in the export so that loading is silent."""
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)
