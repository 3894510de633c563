"""Heads of language models beside the bare backbones: of masked ones as they are exported, of causal ones their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from bigssl.data.kinds.masking import IGNORE
from bigssl.nets.heads.base import MaskedLanguageHead, masked_head
from bigssl.nets.modality.kinds import CAUSAL
from bigssl.transfer.bench import Bench
from bigssl.transfer.subjects import Exported, Subject, Tensors
from bigssl.transfer.team import AgreedError
from bigssl_kernels import linear_cross_entropy

Head = Callable[[Tensor, Tensor], Tensor]
"""(hidden float32 [B, T, H], labels int64 [B, T], each at its token's place, -100 elsewhere) -> sum of losses, []"""
OWN = ("ForCausalLM", "LMHeadModel")  # ends of the names of classes that have a head


class CausalHead(nn.Module):
    """What transformers' class for causal language models of a type puts on its backbone, up to the loss.

    Args:
        weight: [V, H]. bias: [V].
        scale: what hidden states are divided by (Granite's `logits_scaling`).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scale: float) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = weight, bias, scale

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross-entropies of the labelled tokens, each under the hidden state before it."""
        asked, before = labels[:, 1:].flatten(), hidden[:, :-1].flatten(0, 1)
        rows = (asked != IGNORE).nonzero().squeeze(1)
        states = before.index_select(0, rows) / self.scale
        return linear_cross_entropy(states, self.weight, asked.index_select(0, rows), self.bias, reduction="sum")


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a network of this configuration sees what stands before a token only."""
    return config.model_type in CAUSAL


def has_own_head(config: PreTrainedConfig) -> bool:
    """Whether the head of a causal network is its embedding, or stands in its folder."""
    return bool(config.tie_word_embeddings) or any(str(name).endswith(OWN) for name in config.architectures or ())


def causal_heads(bench: Bench, subject: Subject) -> dict[str, Head]:
    """By contender: the embedding where the type ties its head to it, or else, of the trained network, the head that
    its folder holds, and for a random one a random head from the seed. A collective."""
    found: dict[str, Head] = {}
    for name, model in subject.models.items():
        weight, bias = bench.team.each(partial(_output, bench, subject, name, model))
        scale = float(getattr(model.config, "logits_scaling", 1.0))
        found[name] = CausalHead(weight.to(bench.device), None if bias is None else bias.to(bench.device), scale)
    return found


def _output(bench: Bench, subject: Subject, name: str, model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """(weight [V, H], bias [V] or None)"""
    with torch.device("meta"):
        shape: Any = AutoModelForCausalLM.from_config(model.config).get_output_embeddings()
    tied, biased = bool(model.config.tie_word_embeddings), shape.bias is not None
    if tied and not biased:
        return bench.subjects.whole(model.get_input_embeddings().weight), None  # type: ignore[arg-type]
    if name == "trained":
        folder = bench.subjects.folder / subject.name if isinstance(bench.subjects, Exported) else None
        return _head_in(bench.where, folder, model.config)
    generator = torch.Generator().manual_seed(bench.seed)
    std = float(getattr(model.config, "initializer_range", 0.02))
    weight = torch.randn(shape.weight.shape, generator=generator) * std
    return weight, torch.zeros(shape.bias.shape) if biased else None


def _head_in(where: str, folder: Path | None, config: PreTrainedConfig) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) of the head that a folder of transformers holds beside the backbone."""
    if folder is None or not has_own_head(config):
        raise AgreedError(f"{where}.backbone: {headless(config)}")
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    head: Any = model.get_output_embeddings()
    lacking = [name for name in report["missing_keys"] if model.get_parameter(name) in (head.weight, head.bias)]
    if lacking:
        raise AgreedError(f"{where}.backbone: {folder} lacks {', '.join(lacking)}, the head of next tokens; allowed: "
                          "a folder that AutoModelForCausalLM has saved")  # fmt: skip
    return head.weight.detach(), None if head.bias is None else head.bias.detach()


def headless(config: PreTrainedConfig) -> str:
    """What a causal network without a head can be told."""
    return (f"this {config.model_type} has no head of next tokens: an export holds the bare network; allowed: one "
            "whose head is its embedding (config: {tie_word_embeddings: true}), or a folder that AutoModelForCausalLM "
            "has saved")  # fmt: skip


def masked_heads(bench: Bench, subject: Subject, tensors: Tensors) -> dict[str, Head]:
    """The trained head, and for a random network a random one from the seed, tied to the embedding of each."""
    found: dict[str, Head] = {}
    for name, model in subject.models.items():
        embedding = bench.subjects.whole(model.get_input_embeddings().weight)  # type: ignore[arg-type]
        with torch.random.fork_rng():
            torch.manual_seed(bench.seed)
            head = masked_head(embedding, model.config)
        if name == "trained":
            _refuse_other_head(f"{bench.where}.head", head, tensors)
            head.load_state_dict(tensors, strict=False)
        found[name] = head.to(bench.device)
    return found


def _refuse_other_head(where: str, head: MaskedLanguageHead, tensors: Tensors) -> None:
    wanted = {name: list(value.shape) for name, value in head.named_parameters() if name != "weight"}
    there = {name: list(value.shape) for name, value in tensors.items()}
    if there != wanted:
        kind = "of another backbone" if there.keys() == wanted.keys() else "not of masked language modelling"
        raise AgreedError(f"{where}: {kind}: it has {_shapes(there)}; allowed: {_shapes(wanted)}")


def _shapes(tensors: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(tensors.items()))
