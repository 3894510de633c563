"""Heads of language models beside the bare backbones: of masked ones as they are exported, of causal ones their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from bigssl.nets.heads.base import Head as TrainedHead
from bigssl.nets.heads.base import MaskedLanguageHead, masked_head
from bigssl.nets.heads.following import NextTokenHead, logits_scale, output_layer
from bigssl.nets.heads.writing import BIAS, WritingHead
from bigssl.nets.modality.kinds import CAUSAL, ENCODER_DECODER
from bigssl.transfer.bench import Bench
from bigssl.transfer.subjects import Exported, Subject, Tensors
from bigssl.transfer.team import AgreedError

Head = Callable[[Tensor, Tensor], Tensor]
"""(hidden float32 [B, T, H], labels int64 [B, T], each at its token's place, -100 elsewhere) -> sum of losses, []"""
OWN = ("ForCausalLM", "LMHeadModel")  # ends of the names of classes that have a head


class CausalHead(nn.Module):
    """A head of next tokens, asked as one of masked tokens is: labels stand at the places of their tokens."""

    def __init__(self, head: NextTokenHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross-entropies of the labelled tokens, each under the hidden state before it."""
        total, _ = self.head(hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return total


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a network of this configuration sees what stands before a token only."""
    return config.model_type in CAUSAL


def is_writing(config: PreTrainedConfig) -> bool:
    """Whether a network of this configuration reads a text and writes another."""
    return config.model_type in ENCODER_DECODER


def is_head_of(backbone: str, head: TrainedHead) -> bool:
    """Whether it was trained to predict the next tokens of this backbone."""
    return head.kind == "causal" and list(head.backbones.values()) == [backbone]


def has_own_head(config: PreTrainedConfig) -> bool:
    """Whether the head of a causal network is its embedding, or stands in its folder."""
    return bool(config.tie_word_embeddings) or any(str(name).endswith(OWN) for name in config.architectures or ())


def causal_heads(bench: Bench, subject: Subject) -> dict[str, Head]:
    """By contender: of the trained network the head that was exported with it, or else the one that its folder holds;
    of a random network a random one from the seed. Where the type ties its head to its embedding, it is that. A
    collective."""
    found: dict[str, Head] = {}
    for name, model in subject.models.items():
        head = bench.team.each(partial(_output, bench, subject, name, model))
        bias = None if head.bias is None else head.bias.to(bench.device)
        found[name] = CausalHead(NextTokenHead(head.weight.to(bench.device), bias, head.scale, head.softcap))
    return found


def _output(bench: Bench, subject: Subject, name: str, model: PreTrainedModel) -> NextTokenHead:
    layer, scale = output_layer(model.config), logits_scale(model.config)
    own = _exported_with(bench, subject) if name == "trained" else None
    if own is not None:
        weight = own.tensors.get("weight")
        weight = bench.subjects.whole(_embedding(model)) if weight is None else weight
        return NextTokenHead(weight, own.tensors.get("bias"), scale, own.settings.get("softcap"))
    tied, biased = bool(model.config.tie_word_embeddings), layer.bias is not None
    if tied and not biased:
        return NextTokenHead(bench.subjects.whole(_embedding(model)), None, scale)
    if name == "trained":
        folder = bench.subjects.folder / subject.name if isinstance(bench.subjects, Exported) else None
        return NextTokenHead(*_head_in(bench.where, folder, model.config), scale)
    generator = torch.Generator().manual_seed(bench.seed)
    std = float(getattr(model.config, "initializer_range", 0.02))
    weight = torch.randn(layer.weight.shape, generator=generator) * std
    return NextTokenHead(weight, torch.zeros(layer.bias.shape) if biased else None, scale)


def _embedding(model: PreTrainedModel) -> nn.Parameter:
    return model.get_input_embeddings().weight  # type: ignore[return-value]


def _exported_with(bench: Bench, subject: Subject) -> TrainedHead | None:
    """The head of next tokens that a task has trained on this network, where there is one."""
    heads = bench.subjects.heads().values()
    return next((head for head in heads if is_head_of(subject.name, head)), None)


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


def writing_heads(bench: Bench, subject: Subject) -> dict[str, Head]:
    """By contender: tied to its embedding; with the bias that was exported with the trained one, else without. A
    collective."""
    own = {name: head for name, head in bench.subjects.heads().items()
           if head.kind == "writing" and list(head.backbones.values()) == [subject.name]}  # fmt: skip
    found: dict[str, Head] = {}
    for name, model in subject.models.items():
        embedding = bench.subjects.whole(_embedding(model)).to(bench.device)
        bias = next((head.tensors[BIAS] for head in own.values() if name == "trained"), torch.zeros(len(embedding)))
        head = WritingHead(nn.Parameter(embedding, requires_grad=False), bias.to(bench.device))
        found[name] = partial(_written_loss, head)
    return found


def _written_loss(head: WritingHead, hidden: Tensor, labels: Tensor) -> Tensor:
    """As `Head`; a decoder's hidden states stand at the places of the tokens that they are asked for."""
    return head(hidden.flatten(0, 1), labels.flatten())[0]


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
