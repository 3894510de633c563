"""The head of causal language models: which token comes next."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import cached_file

from bigssl_kernels import TokenStatistics, linear_cross_entropy

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class NextTokenHead(nn.Module):
    """Hidden states to the cross-entropies of the tokens behind them; logits are never held.

    logits = softcap · tanh((W h / scale + b) / softcap), or W h / scale + b

    A tied embedding is registered here as well, so that ZeRO-3 gathers it for this module's forward and backward.

    Attributes:
        weight: [V, H]. bias: [V] or None.
        scale: what hidden states are divided by (Granite's `logits_scaling`).
        softcap: bound of the logits (Gemma Team 2024, arXiv 2408.00118), or None.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, scale: float = 1.0, softcap: float | None = None
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.scale, self.softcap = weight, bias, scale, softcap

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V], all of them."""
        found = F.linear(hidden / self.scale, self.weight, self.bias)
        return found if self.softcap is None else self.softcap * torch.tanh(found / self.softcap)

    def forward(self, hidden: Tensor, labels: Tensor, z_loss: float = 0.0) -> tuple[Tensor, TokenStatistics]:
        """[] float32, the sum over the labelled tokens (0 with zero gradients where there are none), and what the
        logits of each say, [N].

        Args:
            hidden: [N, H].
            labels: int64 [N], the token behind each, -100 where there is nothing to predict.
            z_loss: adds z_loss · logsumexp² to each token's loss (Chowdhery et al. 2022, arXiv 2204.02311).
        """
        states = hidden if self.scale == 1.0 else hidden / self.scale
        return linear_cross_entropy(states, self.weight, labels, self.bias, reduction="sum", z_loss=z_loss,
                                    softcap=self.softcap, return_aux=True)  # fmt: skip


def output_layer(config: PreTrainedConfig) -> Any:
    """The last layer of transformers' causal language model of this configuration, as shapes on `meta`."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).get_output_embeddings()


def logits_scale(config: PreTrainedConfig) -> float:
    return float(getattr(config, "logits_scaling", 1.0))


def stored_head(folder: str | os.PathLike[str], config: PreTrainedConfig) -> dict[str, Tensor]:
    """`weight` and `bias` of that layer as far as a folder of transformers, or what a name of the hub stands for, holds
    them; a tied one is the embedding."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    own = {id(value): name for name, value in model.get_output_embeddings().named_parameters()}
    names = {name: own[id(value)] for name, value in model.named_parameters() if id(value) in own}
    found: dict[str, Tensor] = {}
    for file in sorted(Path(str(cached_file(folder, "config.json"))).parent.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {names[key]: opened.get_tensor(key) for key in opened.keys() if key in names}  # noqa: SIM118
    return found


def next_token_head(
    embedding: nn.Parameter, config: PreTrainedConfig, softcap: float | None, stored: Mapping[str, Tensor] = NOTHING
) -> NextTokenHead:
    """The head for a backbone, of the form of the one that transformers has for its type: tied to the embedding where
    `tie_word_embeddings` says so, else with a weight of its own, normal with `initializer_range`; with a bias where
    that one has one.

    Args:
        embedding: [V, E], its token embedding.
        stored: what the head begins with, as of `stored_head`, where `lacking_in` says that it fits.
    """
    layer = output_layer(config)
    weight = embedding
    if not config.tie_word_embeddings:
        weight = nn.Parameter(torch.empty(layer.weight.shape).normal_(std=float(config.initializer_range)))
    bias = None if layer.bias is None else nn.Parameter(torch.zeros(layer.bias.shape))
    head = NextTokenHead(weight, bias, logits_scale(config), softcap)
    with torch.no_grad():
        for name, parameter in _own(head, embedding).items():
            if name in stored and stored[name].shape == parameter.shape:
                parameter.copy_(stored[name])
    return head


def lacking_in(stored: Mapping[str, Tensor], head: NextTokenHead, embedding: nn.Parameter) -> list[str]:
    """What of a head is not there, or of another shape: `weight`, `bias`."""
    own = _own(head, embedding).items()
    return [name for name, parameter in own if name not in stored or stored[name].shape != parameter.shape]


def _own(head: NextTokenHead, embedding: nn.Parameter) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in head.named_parameters() if parameter is not embedding}
