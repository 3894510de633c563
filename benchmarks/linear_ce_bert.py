"""A training step of BERT-base: transformers' own, and the same encoder under our masked-language head."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from bigssl.nets.heads.base import MaskedLanguageHead

Step = Callable[[], tuple[Tensor, ...]]


def steps(device: str, dtype: str) -> dict[str, Step]:
    """Loss and all gradients, 8 x 128 tokens, 15 % masked, on the same weights; found equal before they are returned.

    bfloat16 means autocast.
    """
    torch.manual_seed(0)
    config = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = BertForMaskedLM(config).to(device)
    head = MaskedLanguageHead(model.bert.embeddings.word_embeddings.weight)
    head.dense, head.norm = model.cls.predictions.transform.dense, model.cls.predictions.transform.LayerNorm
    head.bias = model.cls.predictions.bias
    tokens = torch.randint(config.vocab_size, (8, 128), device=device)
    labels = tokens.masked_fill(torch.rand(8, 128, device=device) >= 0.15, -100)
    parameters = [value for value in model.parameters() if value.requires_grad]

    amp = functools.partial(torch.autocast, device, torch.bfloat16, enabled=dtype == "bfloat16")

    def theirs() -> tuple[Tensor, ...]:
        with amp():
            loss = model(input_ids=tokens, labels=labels).loss
        return loss.detach(), *torch.autograd.grad(loss, parameters)

    def mine() -> tuple[Tensor, ...]:
        with amp():
            loss = head(model.bert(input_ids=tokens).last_hidden_state, labels) / (labels != -100).sum()
        return loss.detach(), *torch.autograd.grad(loss, parameters)

    got, expected = (torch.cat([value.flatten() for value in run()]) for run in (mine, theirs))
    gap = ((got - expected).norm() / expected.norm()).item()
    assert gap <= (1e-4 if dtype == "float32" else 3e-2), f"loss and gradients are off by {gap:.2g} of their length"
    return {"transformers": theirs, "ours/torch": mine}
