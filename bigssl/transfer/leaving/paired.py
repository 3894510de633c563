"""Our head of next sentence or sentence order as transformers has it, alone or beside that of masked tokens: what BERT
and ALBERT are pretrained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForNextSentencePrediction, AutoModelForPreTraining, PreTrainedModel

from bigssl.data.kinds.texts.pairs import FRAME, encode_pair, tokens_in
from bigssl.data.loading.collate import collate
from bigssl.nets.heads.pooled import PooledHead
from bigssl.nets.modality import MODALITIES
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.inputs.base import write_settings
from bigssl.transfer.inputs.table import TOKENIZER
from bigssl.transfer.leaving.masked import adapted, fill_masked_head
from bigssl.transfer.leaving.parts import LeavingPart, UnfitError

BOTH, NEXT = AutoModelForPreTraining, AutoModelForNextSentencePrediction
NAMES = ["input_ids", "token_type_ids", "attention_mask"]


def paired_model(part: LeavingPart) -> PreTrainedModel:
    """The network with the head of pairs, and with that of masked tokens where it has one; float32 in eval mode.
    Raises UnfitError."""
    member, pair = part.only, part.pair
    kind: Any = BOTH if part.kind == "mlm" else NEXT
    model: PreTrainedModel = kind.from_config(adapted(member.model.config))
    base: Any = model.base_model
    lacking = base.load_state_dict(member.model.state_dict(), strict=False)
    pooler = base.pooler if isinstance(base.pooler, nn.Linear) else base.pooler.dense
    inside = {id(module) for module in base.modules()}
    shape = pair["classifier.weight"].shape
    classifiers = [module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in inside
                   and module.weight.shape == shape]  # fmt: skip
    if any(not name.startswith("pooler") for name in lacking.missing_keys) or lacking.unexpected_keys or len(
            classifiers) != 1:  # fmt: skip
        raise UnfitError(f"part {part.name!r}: transformers' {type(model).__name__} has another head than the one "
                         "trained; allowed: --format onnx, without the head of pairs")
    if part.kind == "mlm":
        fill_masked_head(part, model)
    for module, name in ((pooler, "dense"), (classifiers[0], "classifier")):
        module.load_state_dict({key: pair[f"{name}.{key}"] for key in ("weight", "bias")})
    return model.eval()


def pair_logits(part: LeavingPart, pairs: list[tuple[str, str]]) -> Tensor:
    """float32 [N, 2] of pairs that fit the context."""
    member, head = part.only, PooledHead(part.only.model.config.hidden_size, 2)
    assert isinstance(member.takes, TextInput)
    head.load_state_dict(dict(part.pair))
    batch = collate([framed(member.takes, *pair) for pair in pairs])
    with torch.no_grad():
        return head(MODALITIES["text"].hidden(member.model, batch))


def framed(takes: TextInput, first: str, second: str) -> dict[str, np.ndarray]:
    """As the task frames a pair that fits the context."""
    return encode_pair(takes.tokenizer, first, second, takes.length, np.random.default_rng(0))[0]


def fitting_pairs(part: LeavingPart, texts: list[str]) -> list[tuple[str, str]]:
    """Each text with the one before it, where both fit the context. Raises UnfitError where none does, or where the
    tokenizer frames pairs otherwise than the task."""
    takes = part.only.takes
    assert isinstance(takes, TextInput)
    sizes = [tokens_in(takes.tokenizer, text) for text in texts]
    found = [(texts[at - 1], texts[at]) for at in range(len(texts))
             if sizes[at - 1] and sizes[at] and sizes[at - 1] + sizes[at] <= takes.length - FRAME]  # fmt: skip
    if not found:
        raise UnfitError(f"part {part.name!r}: no two short texts fit its {takes.length} tokens, by which the head of "
                         "pairs could be proven; allowed: --format onnx, without that head")
    for first, second in found:
        ours = framed(takes, first, second)
        theirs = takes.tokenizer(first, second, return_token_type_ids=True)
        size = int(ours["attention_mask"].sum())
        if any(theirs[name] != ours[name][:size].tolist() for name in NAMES):
            raise UnfitError(f"part {part.name!r}: its tokenizer does not make [CLS] a [SEP] b [SEP] with segments 0 "
                             "and 1 of a pair, as the head of pairs has seen them; allowed: --format onnx, without it")
    return found


def with_segments(folder: Path) -> None:
    """Has the tokenizer in a folder tell the two texts of a pair apart by itself."""
    settings = json.loads((folder / TOKENIZER).read_text())
    write_settings(folder / TOKENIZER, settings | {"model_input_names": NAMES})
