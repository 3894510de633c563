"""A network that predicts next tokens, with its head, as the class that transformers has for its type."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from tokenizers import processors
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bigssl.data.kinds.texts.following import frame_of
from bigssl.nets.heads.following import NextTokenHead, logits_scale
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.leaving.parts import LeavingPart, UnfitError


def causal_head(part: LeavingPart) -> NextTokenHead:
    """The trained head: its own weight, or without one the token embedding."""
    model = part.only.model
    embedding: Any = model.get_input_embeddings().weight
    tensors = part.tensors
    return NextTokenHead(tensors.get("weight", embedding.detach()), tensors.get("bias"), logits_scale(model.config))


def causal_language_model(part: LeavingPart) -> PreTrainedModel:
    """The network with its head, float32 in eval mode.

    Raises:
        UnfitError: transformers has no such class for this type, or one of another head.
    """
    member = part.only
    config = copy.deepcopy(member.model.config)
    where = f"part {part.name!r}: transformers"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or part.tensors.keys() - {"weight", "bias"}:
        raise UnfitError(f"{where} has no {config.model_type} that predicts the next token by a head of "
                         f"{', '.join(part.tensors) or 'its embedding'}")
    if part.settings.get("softcap") is not None:
        raise UnfitError(f"{where}' {config.model_type} has no softcap, with which this head was trained: its "
                         "probabilities would be others; allowed: a run without objective.softcap")
    config.tie_word_embeddings, config.dtype = "weight" not in part.tensors, torch.float32
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.base_model.load_state_dict(member.model.state_dict())
    model.tie_weights()
    own: dict[str, Tensor] = dict(model.get_output_embeddings().named_parameters())
    for name in own.keys() | part.tensors.keys():
        if name != "weight" and (name in own) != (name in part.tensors):
            raise UnfitError(f"{where}' {type(model).__name__} has another head than the one trained ({name})")
    with torch.no_grad():
        for name, value in part.tensors.items():
            own[name].copy_(value)
    return model.eval()


def open_ended(part: LeavingPart) -> LeavingPart:
    """The same with a tokenizer that puts nothing behind a text: a prompt goes on, where an end would say that it does
    not."""
    (role, member), = part.members.items()
    assert isinstance(member.takes, TextInput)
    takes = dataclasses.replace(member.takes, tokenizer=without_end(member.takes.tokenizer))
    return dataclasses.replace(part, members={role: dataclasses.replace(member, takes=takes)})


def without_end(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """It, or where it puts something behind a text a copy that does not."""
    begin, end = frame_of(tokenizer)
    if not len(end):
        return tokenizer
    other: PreTrainedTokenizerFast = copy.deepcopy(tokenizer)
    first = tokenizer.convert_ids_to_tokens(begin.tolist())
    framed = " ".join([*first, "$A"])
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=framed, pair=f"{framed} $B", special_tokens=list(zip(first, begin.tolist(), strict=True))
    )
    return other
