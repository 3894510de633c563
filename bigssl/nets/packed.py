"""Packed texts through a network: each token sees the tokens of its own text only."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.config.errors import ConfigError
from bigssl.nets.chance.attention import Packing
from bigssl.nets.chance.dropout import within_packing

PACKABLE = ("albert", "bert", "camembert", "distilbert", "electra", "gpt2", "llama", "mistral", "modernbert", "qwen2",
            "roberta", "xlm-roberta")  # fmt: skip
"""Model types that take positions as they are, and hand every layer's attention to `chance/attention.py`."""
_FROM_PADDING = ("camembert", "roberta", "xlm-roberta")  # whose positions begin behind the number of the padding token


def check_packable(model: PreTrainedModel, field: str) -> None:
    """Raises ConfigError naming the recipe field where `packed_tokens` would not be the unpacked result."""
    kind, attention = model.config.model_type, model.config._attn_implementation
    if kind not in PACKABLE:
        raise ConfigError(f"{field}: value true with a backbone of type {kind}; allowed with: {', '.join(PACKABLE)}")
    if attention != "sdpa":
        raise ConfigError(f"{field}: value true with attention {attention}; allowed with: sdpa")


def packed_tokens(model: PreTrainedModel, input_ids: Tensor, positions: Tensor, packing: Packing) -> Tensor:
    """Last hidden states [R, T, dim] of packed rows: what each text gives alone, to rounding.

    Args:
        input_ids: int64 [R, T].
        positions: int64 [R, T], from 0 in each text.
    """
    first = model.config.pad_token_id + 1 if model.config.model_type in _FROM_PADDING else 0
    nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)  # what has 4 dimensions is handed on
    with within_packing(packing):
        hidden: Tensor = model(
            input_ids=input_ids, attention_mask=nothing, position_ids=positions + first
        ).last_hidden_state
    return hidden
