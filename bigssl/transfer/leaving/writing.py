"""A network that reads one text and writes another, with its head, as the class that transformers has for its type."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, AutoModelForSeq2SeqLM, PreTrainedModel

from bigssl.nets.heads.base import IGNORED
from bigssl.nets.heads.writing import BIAS, WritingHead, written_states
from bigssl.transfer.leaving.parts import LeavingPart, UnfitError


def trained_writing_head(part: LeavingPart) -> WritingHead:
    """The head, tied to the token embedding."""
    embedding: Any = part.only.model.get_input_embeddings().weight
    return WritingHead(nn.Parameter(embedding.detach(), requires_grad=False), part.tensors[BIAS])


def writing_model(part: LeavingPart) -> PreTrainedModel:
    """The network with its head, float32 in eval mode.

    Raises:
        UnfitError: transformers has no such class for this type, or one of another head.
    """
    member = part.only
    config = copy.deepcopy(member.model.config)
    if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING or part.tensors.keys() != {BIAS}:
        raise UnfitError(f"part {part.name!r}: transformers has no {config.model_type} that writes texts by a head of "
                         f"{', '.join(part.tensors) or 'its embedding'}")  # fmt: skip
    config.dtype = torch.float32
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(config)
    model.base_model.load_state_dict(member.model.state_dict())
    model.tie_weights()
    model.get_buffer(BIAS).copy_(part.tensors[BIAS])
    return model.eval()


@torch.no_grad()
def first_written(part: LeavingPart, input_ids: Tensor, attention_mask: Tensor, count: int) -> Tensor:
    """The likeliest `count` tokens after each other, int64 [N, count], padding behind the end of a text: a loop over
    the bare network, one pass a token."""
    model, head = part.only.model, trained_writing_head(part)
    found, ended = input_ids[:, :0], torch.zeros(len(input_ids), 1, dtype=torch.bool)
    for _ in range(count):
        labels = torch.cat([found, torch.full_like(input_ids[:, :1], IGNORED)], 1)
        states = written_states(model, input_ids, attention_mask, labels)[:, -1:]
        likeliest = head.logits(states).argmax(-1).masked_fill(ended, model.config.pad_token_id)
        found, ended = torch.cat([found, likeliest], 1), ended | (likeliest == model.config.eos_token_id)
    return found
