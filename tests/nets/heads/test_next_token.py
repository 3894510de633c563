"""The head of next tokens: a loop in float64, and the heads of transformers' types."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from bigssl.nets.heads.following import NextTokenHead, next_token_head
from bigssl.nets.modality.kinds import CAUSAL

TINY = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
        "num_key_value_heads": 2, "head_dim": 4, "n_embd": 8, "n_layer": 1, "n_head": 2, "ffn_dim": 8,
        "word_embed_proj_dim": 8, "pad_token_id": 0}  # fmt: skip


def by_hand(head: NextTokenHead, hidden: Any, labels: list[int], z_loss: float) -> Any:
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(hidden, labels, strict=True):
        if label == -100:
            continue
        logits = []
        for weights, bias in zip(head.weight, head.bias, strict=True):  # type: ignore[arg-type]
            logit = (weights * row).sum() / head.scale + bias
            logits.append(logit if head.softcap is None else head.softcap * torch.tanh(logit / head.softcap))
        lse = torch.stack(logits).logsumexp(0)
        total = total + lse - logits[label] + z_loss * lse**2
    return total


@pytest.mark.parametrize(("softcap", "z_loss"), [(None, 0.0), (2.0, 0.0), (None, 0.3), (1.5, 0.1)])
def test_loss_gradients_and_logits_are_those_of_a_loop(softcap: float | None, z_loss: float) -> None:
    torch.manual_seed(0)
    head = NextTokenHead(nn.Parameter(torch.randn(11, 8)), nn.Parameter(torch.randn(11)), 1.7, softcap).double()
    hidden, labels = torch.randn(6, 8, dtype=torch.float64, requires_grad=True), [3, -100, 0, 10, -100, 5]
    total, said = head(hidden, torch.tensor(labels), z_loss)
    expected = by_hand(head, hidden, labels, z_loss)
    torch.testing.assert_close(total, expected)
    inputs = [hidden, head.weight, head.bias]
    for ours, theirs in zip(*(torch.autograd.grad(each, inputs) for each in (total, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)
    chosen = head.logits(hidden)
    torch.testing.assert_close(said.logsumexp[0], chosen[0].logsumexp(0))
    assert softcap is None or chosen.abs().max() < softcap
    assert said.correct.tolist() == [label >= 0 and int(row.argmax()) == label
                                     for row, label in zip(chosen, labels, strict=True)]  # fmt: skip


@pytest.mark.parametrize("kind", CAUSAL)
def test_it_has_the_form_of_the_one_of_the_type(kind: str) -> None:
    """Tied or not, with a bias or without, as transformers' class."""
    known = CONFIG_MAPPING[kind]().to_dict()
    config = CONFIG_MAPPING[kind](**{name: value for name, value in TINY.items() if name in known})
    theirs: Any = AutoModelForCausalLM.from_config(config)
    embedding = theirs.get_input_embeddings().weight
    head, layer = next_token_head(embedding, config, None), theirs.get_output_embeddings()
    assert (head.weight is embedding) == (layer.weight is embedding)
    assert head.weight.shape == layer.weight.shape and (head.bias is None) == (layer.bias is None)
    if head.weight is not embedding:
        deviation = torch.cat([next_token_head(embedding, config, None).weight.flatten() for _ in range(9)]).std()
        assert math.isclose(deviation.item(), config.initializer_range, rel_tol=0.2) and head.weight.requires_grad
