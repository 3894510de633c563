"""Backbones: transformers models built from a recipe section, with what an objective needs to know of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
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
from bigssl.nets import build, dropout
from bigssl.nets.kinds import check_kind, unused_parameters
from bigssl.nets.norm import has_batch_norm, with_global_batch_norm
from bigssl.nets.pool import normalise, pooled
from bigssl.nets.weightless import feature_size

SPECIAL_IDS = {
    "pad_token_id": "pad_token", "bos_token_id": "cls_token", "eos_token_id": "sep_token", "cls_token_id": "cls_token",
    "sep_token_id": "sep_token", "mask_token_id": "mask_token", "unk_token_id": "unk_token",
}  # fmt: skip
"""Fields of transformers configurations, and the token of the tokenizer that each is about."""


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
        where = f"backbones.{name}"
        self._tokenizer = tokenizer
        hf = hf_config(where, config, tokenizer)
        _refuse_one_sided(where, hf)
        self.size = config.size or 0
        self.length = config.length or 0
        field = f"{where}.pretrained" if config.pretrained else f"{where}.config"
        self.dim = feature_size(field, hf, self._inputs, lambda model: self._check(where, model))
        self.model = _build(where, config, hf)
        _freeze_unused(self.model)
        if has_batch_norm(self.model):
            with_global_batch_norm(self.model)
        if config.compile:
            self.model.compile()

    def _inputs(self) -> dict[str, Tensor]:
        """Two samples, for a trial."""
        if not self.is_text:
            return {"pixel_values": torch.zeros(2, 3, self.size, self.size)}
        ids = torch.full((2, self.length), self.tokenizer.unk_token_id)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _check(self, where: str, model: PreTrainedModel) -> None:
        if self.is_text:
            _check_text(where, model, self.length, self.tokenizer)

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


def hf_config(where: str, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None) -> PreTrainedConfig:
    """The transformers configuration of a backbone; `where` is its recipe field, for errors.

    The size of the vocabulary and the ids of the special tokens are the tokenizer's, the image side is the recipe's.

    Raises:
        ConfigError: unknown type, field or value, with the nearest match; a special id that is not the tokenizer's.
    """
    if config.type not in CONFIG_MAPPING:
        hint = nearest(config.type, sorted(CONFIG_MAPPING.keys()))
        raise ConfigError(f"{where}.type: value {config.type!r}; allowed: a transformers model type{hint}")
    check_kind(f"{where}.type", config.type, text=tokenizer is not None)
    if config.pretrained is not None:
        return _pretrained_config(where, config.type, config.pretrained)
    kind = CONFIG_MAPPING[config.type]
    defaults = kind().to_dict()
    allowed = sorted(set(defaults) - {"transformers_version", "model_type", "architectures"})
    for field, value in config.config.items():
        if field not in allowed:
            hint = nearest(field, allowed)
            raise ConfigError(f"{where}.config.{field}: unknown field (value {value!r}) of {kind.__name__}{hint}")
    fields: dict[str, Any] = dict(config.config)
    if tokenizer is not None:
        fields = {"vocab_size": len(tokenizer)} | fields | _special_ids(where, fields, tokenizer, allowed)
    if config.size and "image_size" in allowed:
        sides = isinstance(defaults["image_size"], list | tuple)
        fields.setdefault("image_size", [config.size, config.size] if sides else config.size)
    try:
        return kind(**fields)
    except Exception as error:  # transformers raises types of its own for a wrong field
        raise ConfigError(f"{where}.config: {' '.join(str(error).split())[:300]}") from None


def _special_ids(
    where: str, fields: dict[str, Any], tokenizer: PreTrainedTokenizerFast, allowed: list[str]
) -> dict[str, int]:
    """Ids of the special tokens by the fields that a configuration has for them: the defaults are another tokenizer's,
    so that a network would take [UNK] for padding."""
    ids = {}
    for field, token in SPECIAL_IDS.items():
        if field in allowed:
            ids[field] = int(getattr(tokenizer, f"{token}_id"))
            if fields.get(field, ids[field]) != ids[field]:
                raise ConfigError(
                    f"{where}.config.{field}: value {fields[field]!r}; allowed: {ids[field]}, the tokenizer's "
                    f"{getattr(tokenizer, token)} (taken from it where the field is left out)"
                )
    return ids


def _pretrained_config(where: str, kind: str, pretrained: str) -> PreTrainedConfig:
    try:
        loaded: PreTrainedConfig = AutoConfig.from_pretrained(pretrained)
    except Exception as error:  # transformers raises whatever it met
        raise ConfigError(
            f"{where}.pretrained: value {pretrained!r}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from None
    if loaded.model_type != kind:
        raise ConfigError(f"{where}.type: value {kind!r}; allowed: {loaded.model_type}, which {pretrained} holds")
    return loaded


def _refuse_one_sided(where: str, hf: PreTrainedConfig) -> None:
    """A masked token would be predicted from those before it only, and nothing else would tell."""
    for field in ("is_decoder", "causal"):
        if getattr(hf, field, False):
            raise ConfigError(f"{where}.config.{field}: value true; allowed: false (tokens have to see both sides)")


def check_backbone(name: str, config: BackboneConfig) -> None:
    """Refuse what can be seen before anything is loaded or built."""
    where = f"backbones.{name}"
    if config.pretrained is not None and config.config:
        raise ConfigError(f"{where}.config: given beside pretrained {config.pretrained!r}; allowed: one of the two")
    if config.tokenizer is not None and not Path(config.tokenizer).exists():
        raise ConfigError(f"{where}.tokenizer: no file {config.tokenizer}; train one with `bigssl tokenizer train`")
    if config.tokenizer is not None and config.length is None:
        raise ConfigError(f"{where}.length: missing; a text backbone needs its tokens per sequence, e.g. 128")
    if config.tokenizer is None and config.size is None:
        raise ConfigError(f"{where}: neither size (image side in pixels) nor tokenizer (text) is given; allowed: one")


def _build(where: str, config: BackboneConfig, hf: PreTrainedConfig) -> PreTrainedModel:
    model = _load_or_create(where, config, hf)
    dropout.attention_by_sample(model, where)
    if config.activation_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(f"{where}.activation_checkpointing: {type(model).__name__} has none; allowed: false")
        _recompute(model)
    return model.train()  # from_pretrained gives a model in eval mode: no dropout, no activation checkpointing


def _load_or_create(where: str, config: BackboneConfig, hf: PreTrainedConfig) -> PreTrainedModel:
    field = f"{where}.pretrained: value {config.pretrained!r}" if config.pretrained else f"{where}.config"
    options = {"attn_implementation": config.attention} if config.attention else {}
    try:
        return build.load(where, config.pretrained, hf, **options) if config.pretrained else (
            build.create(where, hf, **options)
        )
    except Exception as error:  # transformers raises whatever it met
        raise ConfigError(f"{field}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from None


def _check_text(where: str, model: PreTrainedModel, length: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """Vocabulary, padding and positions: a GPU would only tell by an assertion in a kernel, or not at all."""
    if length < 3:
        raise ConfigError(f"{where}.length: value {length}; allowed: >= 3, for [CLS] text [SEP]")
    rows = model.config.vocab_size
    if rows < len(tokenizer):
        raise ConfigError(f"{where}.config.vocab_size: value {rows}; allowed: >= {len(tokenizer)} (the tokenizer)")
    positions = _position_table(model)
    for table in (model.get_input_embeddings(), positions):
        padding = getattr(table, "padding_idx", None)
        if padding is not None and padding != tokenizer.pad_token_id:
            raise ConfigError(
                f"{where}.tokenizer: its {tokenizer.pad_token} is {tokenizer.pad_token_id}, but this "
                f"{type(model).__name__} takes {padding} for padding; allowed: a tokenizer with padding {padding}"
            )
    most = getattr(model.config, "max_position_embeddings", None)
    if most is None:
        return
    padding = getattr(positions, "padding_idx", None)
    first = 0 if padding is None else padding + 1
    if length > most - first:
        why = f"max_position_embeddings {most}" + (f", and positions begin at {first}" if first else "")
        raise ConfigError(
            f"{where}.length: value {length}; allowed: <= {most - first} ({why}), or a network with "
            f"max_position_embeddings={length + first}"
        )


def _position_table(model: PreTrainedModel) -> nn.Module | None:
    """The embedding of the positions. RoBERTa and its kin count from the one after the padding's, which they mark."""
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    return tables[0] if tables else None


def _recompute(model: PreTrainedModel) -> None:
    renamed = hasattr(model, "activation_checkpointing_enable")  # since transformers 5.21
    enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": dropout.recomputing})


def _freeze_unused(model: PreTrainedModel) -> None:
    """Weight decay would shrink what gets no gradient."""
    for name in unused_parameters(model):
        model.get_parameter(name).requires_grad_(False)
