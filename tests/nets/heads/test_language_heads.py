"""The head of masked language models transforms masked tokens only."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigssl.nets.heads.base import MaskedLanguageHead


def inputs(dim: int = 8) -> tuple[Tensor, Tensor, nn.Parameter]:
    torch.manual_seed(0)
    hidden, labels = torch.randn(3, 5, dim), torch.randint(0, 11, (3, 5))
    labels[torch.rand(3, 5) < 0.6] = -100
    return hidden.requires_grad_(), labels, nn.Parameter(torch.randn(11, 8))


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize(("dim", "most"), [(8, None), (8, 15), (8, 40), (12, None)])
def test_masked_head_equals_full_logits(dim: int, most: int | None) -> None:
    """Also where the hidden states are wider than the embedding."""
    hidden, labels, embedding = inputs(dim)
    head = MaskedLanguageHead(embedding, hidden.shape[-1])
    logits = F.linear(head.norm(F.gelu(head.dense(hidden))), embedding, head.bias)
    truth = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    leaves = (hidden, *head.parameters())
    torch.testing.assert_close(gradients(head(hidden, labels, most), *leaves), gradients(truth, *leaves))


def test_masked_head_says_when_the_bound_is_wrong() -> None:
    hidden, labels, embedding = inputs()
    assert MaskedLanguageHead(embedding, hidden.shape[-1])(hidden, labels, int((labels != -100).sum()) - 1).isnan()


def test_masked_head_transforms_masked_tokens_only() -> None:
    hidden, labels, embedding = inputs()
    head, seen = MaskedLanguageHead(embedding, hidden.shape[-1]), []
    head.dense.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    head(hidden, labels)
    assert seen == [(labels != -100).sum()]
