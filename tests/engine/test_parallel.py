"""What shares one sample among ranks is refused by name: losses that gather would be others, in silence."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe
from bigssl.engine import settings, zero


@pytest.mark.parametrize("option", ["tensor_parallel", "sequence_parallel_size", "autotp_size"])
def test_a_recipe_that_shares_samples_is_refused_by_name(option: str) -> None:
    with pytest.raises(ConfigError, match=f"zero.options.{option}: tensor, sequence and pipeline.*zero.stage=3"):
        zero.check_zero(recipe(**{option: 2}))


def recipe(**options: Any) -> Recipe:
    zero = mock.Mock(stage=0, options=options, communication_data_type="fp32")
    return Recipe.model_construct(zero=zero, optim=mock.Mock(name="adamw"))


class Texts(nn.Module):
    """A network of which AutoTP cuts the layers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        self.model = BertModel(BertConfig(**sizes, vocab_size=50))


def shared(ways: dict[str, Any]) -> str:
    zero.start()
    made, original = Texts(), settings.settings_for
    told = mock.Mock(side_effect=lambda *a, **b: original(*a, **b) | ways)
    with mock.patch.object(zero, "settings_for", told):
        try:
            zero.Engine(made, torch.optim.AdamW(made.parameters()), recipe(), micro=2, accum=1, bf16=False)
        except RuntimeError as error:
            return str(error)
    return ""


@pytest.mark.distributed
def test_an_engine_whose_ranks_share_samples_does_not_start(ranks: Any) -> None:
    """Set up outside of a recipe; without, the same engine starts."""
    assert ranks(shared, 2, {}) == ["", ""]
    said = ranks(shared, 2, {"tensor_parallel": {"autotp_size": 2}})
    assert all(said)  # the one that is later may find the other gone
    assert any("means of gradients over 1 of 2 ranks" in each and "docs/parallel.md" in each for each in said)
