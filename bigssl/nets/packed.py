"""Attention of packed texts: each token sees the tokens of its own text only."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.config.errors import ConfigError

PACKABLE = ("bert", "electra")
"""Model types that take a 4-D mask as it is in every layer, and positions as they are. ModernBERT's local layers would
see beyond their window with such a mask; RoBERTa counts positions from its padding token on."""


def check_packable(model: PreTrainedModel, field: str) -> None:
    """Raises ConfigError naming the recipe field where `packed_tokens` would not be the unpacked result."""
    kind, attention = model.config.model_type, model.config._attn_implementation
    if kind not in PACKABLE:
        raise ConfigError(f"{field}: value true with a backbone of type {kind}; allowed with: {', '.join(PACKABLE)}")
    if attention not in ("eager", "sdpa"):
        raise ConfigError(f"{field}: value true with attention {attention}; allowed with: eager, sdpa")


def packed_tokens(model: PreTrainedModel, input_ids: Tensor, segments: Tensor, positions: Tensor) -> Tensor:
    """Last hidden states [R, T, dim] of packed rows: what each text gives alone, to rounding.

    Args:
        input_ids: int64 [R, T].
        segments: int64 [R, T], equal within a text of a row, 0 where there is none.
        positions: int64 [R, T], from 0 in each text.
    """
    mask = block_diagonal(segments, additive=model.config._attn_implementation == "eager")
    hidden: Tensor = model(input_ids=input_ids, attention_mask=mask, position_ids=positions).last_hidden_state
    return hidden


def block_diagonal(segments: Tensor, *, additive: bool) -> Tensor:
    """[R, T] -> [R, 1, T, T]: True where two tokens belong together, or 0 there and the least float32 elsewhere.

    transformers hands a 4-D mask to the attention as it is; its eager attention adds it to the scores, so that a
    boolean one would pass unnoticed and hide nothing. Padding attends to padding: a softmax over nothing is NaN.
    """
    same = (segments.unsqueeze(1) == segments.unsqueeze(2)).unsqueeze(1)
    return torch.where(same, 0.0, torch.finfo(torch.float32).min) if additive else same
