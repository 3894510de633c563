"""What a text network and its tokenizer have to agree on: size, special tokens, positions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig

SPECIAL_IDS = {
    "pad_token_id": ("pad_token",), "bos_token_id": ("bos_token", "cls_token"),
    "eos_token_id": ("eos_token", "sep_token"), "cls_token_id": ("cls_token",), "sep_token_id": ("sep_token",),
    "mask_token_id": ("mask_token",), "unk_token_id": ("unk_token",),
    "decoder_start_token_id": ("eos_token", "sep_token"), "forced_eos_token_id": ("eos_token", "sep_token"),
}  # fmt: skip
"""Fields of transformers configurations, and the tokens of a tokenizer that each is about: the first there is."""


def special_ids(
    where: str, given: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, allowed: Collection[str]
) -> dict[str, int | None]:
    """Ids of the special tokens by the fields that a configuration has for them, None for a token there is not: the
    defaults are another tokenizer's, so that a network would take [UNK] for padding.

    Raises:
        ConfigError: `given`, the recipe's fields, has another id.
    """
    ids: dict[str, int | None] = {}
    for field in SPECIAL_IDS.keys() & set(allowed):
        token, ids[field] = special_id(tokenizer, field)
        if given.get(field, ids[field]) != ids[field]:
            raise ConfigError(
                f"{where}.config.{field}: value {given[field]!r}; allowed: {ids[field]}, the tokenizer's "
                f"{token or 'lack of one'} (taken from it where the field is left out)"
            )
    return ids


def special_id(tokenizer: PreTrainedTokenizerFast, field: str) -> tuple[str | None, int | None]:
    """The token that a field of a configuration is about, and its id; (None, None) where the tokenizer has none."""
    for token in SPECIAL_IDS[field]:
        if getattr(tokenizer, token) is not None:
            return str(getattr(tokenizer, token)), int(getattr(tokenizer, f"{token}_id"))
    return None, None


def no_padding(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of some token that is not padding."""
    return next(token for token in range(2) if token != tokenizer.pad_token_id)


def rows_for(tokenizer: PreTrainedTokenizerFast) -> int:
    """Rows that an embedding of its tokens has to have: ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def check_vocabulary(
    where: str, model: PreTrainedModel, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Vocabulary, padding and positions: a GPU would only tell by an assertion in a kernel, or not at all. Raises
    ConfigError."""
    length = config.length
    assert length is not None
    frame = tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"])
    if length <= len(frame):
        shown = " ".join([*frame[:1], "text", *frame[1:]])
        raise ConfigError(f"{where}.length: value {length}; allowed: >= {len(frame) + 1}, for {shown}")
    rows = model.config.vocab_size
    if rows < (needed := rows_for(tokenizer)):
        field = f"{where}.config.vocab_size: value {rows}"
        if config.init_from is not None:
            field = f"{where}.tokenizer: value {config.tokenizer!r}: {config.init_from} has {rows} rows of tokens"
        raise ConfigError(f"{field}; allowed: >= {needed} (the tokenizer's ids)")
    positions = _position_table(model)
    for table in (model.get_input_embeddings(), positions):
        padding = getattr(table, "padding_idx", None)
        if padding is not None and padding != tokenizer.pad_token_id:
            raise ConfigError(
                f"{where}.tokenizer: its {tokenizer.pad_token or 'padding'} is {tokenizer.pad_token_id}, but this "
                f"{type(model).__name__} takes {padding} for padding; allowed: a tokenizer with padding {padding}"
            )
    _check_positions(where, model, length, positions)


def _check_positions(where: str, model: PreTrainedModel, length: int, positions: nn.Module | None) -> None:
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
