"""Attention of packed texts: each token sees the tokens of its own text only, in causal networks those before it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.config.errors import ConfigError
from bigssl.nets.modality.kinds import CAUSAL

PACKABLE = ("bert", "electra")
"""Model types that take a 4-D mask as it is in every layer, and positions as they are. ModernBERT's local layers would
see beyond their window with such a mask; RoBERTa counts positions from its padding token on. All CAUSAL ones do."""
MASKED = ("eager", "sdpa")
"""Implementations of attention that take such a mask."""


def check_packable(model: PreTrainedModel, field: str) -> None:
    """Raises ConfigError naming the recipe field where `packed_tokens` would not be the unpacked result."""
    kind, attention = model.config.model_type, model.config._attn_implementation
    if kind not in PACKABLE:
        raise ConfigError(f"{field}: value true with a backbone of type {kind}; allowed with: {', '.join(PACKABLE)}")
    if attention not in MASKED:
        raise ConfigError(f"{field}: value true with attention {attention}; allowed with: {', '.join(MASKED)}")


def check_causal(model: PreTrainedModel, length: int, where: str) -> None:
    """The same of a causal network, whose recipe section is `where`, in rows of `length` tokens. Raises ConfigError."""
    attention, window = model.config._attn_implementation, getattr(model.config, "sliding_window", None)
    if attention not in MASKED:
        raise ConfigError(f"{where}.attention: value {attention}; allowed: {', '.join(MASKED)} (texts share rows)")
    if window is not None and window < length:
        raise ConfigError(f"{where}.config.sliding_window: value {window}; allowed: >= {length}, {where}.length, or "
                          "null (texts that share rows have a mask of their own, without a window)")  # fmt: skip


def packed_tokens(model: PreTrainedModel, input_ids: Tensor, segments: Tensor, positions: Tensor) -> Tensor:
    """Last hidden states [R, T, dim] of packed rows: what each text gives alone, to rounding.

    Args:
        input_ids: int64 [R, T].
        segments: int64 [R, T], equal within a text of a row, 0 where there is none.
        positions: int64 [R, T], from 0 in each text.
    """
    causal = model.config.model_type in CAUSAL
    mask = block_diagonal(segments, causal=causal, additive=model.config._attn_implementation == "eager")
    cache = {"use_cache": False} if causal else {}
    hidden: Tensor = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, **cache
    ).last_hidden_state
    return hidden


def block_diagonal(segments: Tensor, *, causal: bool, additive: bool) -> Tensor:
    """[R, T] -> [R, 1, T, T]: True where a token (row) sees another, or 0 there and the least float32 elsewhere.

    transformers hands a 4-D mask to the attention as it is; its eager attention adds it to the scores, so that a
    boolean one would pass unnoticed and hide nothing. Padding attends to padding: a softmax over nothing is NaN.
    """
    seen = (segments.unsqueeze(1) == segments.unsqueeze(2)).unsqueeze(1)
    seen = seen.tril() if causal else seen
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min) if additive else seen
