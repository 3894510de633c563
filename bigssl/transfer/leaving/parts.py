"""What of an export can leave by itself: a network, with the head that predicts its masked tokens where it has one, or
two networks with the projections that CLIP trained."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from bigssl.config.errors import nearest
from bigssl.data.sample import Sample
from bigssl.nets.heads.base import Head, MaskedLanguageHead, masked_head
from bigssl.nets.known import trust
from bigssl.nets.modality import MODALITIES
from bigssl.nets.modality.kinds import unused_parameters
from bigssl.transfer.inputs import CONFIG, Input, exported_input
from bigssl.transfer.leaving.export import ExportError, load_backbone, load_head
from bigssl.transfer.leaving.samples import collated

POOLER = "add_pooling_layer"  # argument of most classes of transformers that have a pooler


class UnfitError(ExportError):
    """A format cannot hold a part; the message says why, and what can."""


@dataclass(frozen=True)
class PartNetwork:
    """A network of a part, float32 in eval mode on the CPU, and what it takes. name: its folder in the export.

    untrained: its tensors that the export does not hold, as nothing has trained them and features do not pass through
    them: they are as transformers makes them, from one seed.
    """

    name: str
    model: PreTrainedModel
    takes: Input
    untrained: tuple[str, ...] = ()

    def features(self, samples: list[Sample]) -> Tensor:
        """float32 [N, D]."""
        with torch.no_grad():
            return MODALITIES[self.takes.modality].features(self.model, collated(self.takes, samples))

    def hidden(self, samples: list[Sample]) -> tuple[Tensor, Tensor]:
        """Of texts: hidden states [N, T, D] and which tokens are real, bool [N, T]."""
        batch = collated(self.takes, samples)
        with torch.no_grad():
            return MODALITIES["text"].hidden(self.model, batch), batch["attention_mask"].bool()

    @property
    def options(self) -> dict[str, Any]:
        """Arguments without which `from_pretrained` would make a pooler that nothing has trained, or refuse code that
        lies beside the weights."""
        return ({POOLER: False} if has_pooler_switch(self.model) else {}) | trust(self.model)


@dataclass(frozen=True)
class LeavingPart:
    """Attributes:
    name: as --part has it.
    kind: "network", or what its head is: "mlm", "causal", "writing", "clip", "masked_series", "forecast".
    members: by role: "image" and "text" of CLIP; of others the one, by its modality.
    tensors, settings: of the head.
    pair: tensors of the head of pairs of texts that leaves with it; {} of none.
    """

    name: str
    kind: str
    members: dict[str, PartNetwork]
    tensors: dict[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    pair: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def only(self) -> PartNetwork:
        """The network of a part that has one."""
        (member,) = self.members.values()
        return member

    def head(self) -> MaskedLanguageHead:
        """Of masked language modelling, with its trained tensors."""
        embedding: Any = self.only.model.get_input_embeddings().weight
        head = masked_head(embedding, self.only.model.config)
        found = head.load_state_dict(self.tensors, strict=False)
        if found.missing_keys != ["weight"] or found.unexpected_keys:
            raise ExportError(f"part {self.name!r}: its head holds {', '.join(self.tensors)}; no head of this network")
        return head.eval().requires_grad_(False)

    def projected(self, role: str, samples: list[Sample]) -> Tensor:
        """Of CLIP: unit vectors [N, P] of a side."""
        return F.normalize(self.members[role].features(samples) @ self.tensors[f"{role}_projection"].T, dim=1)


KINDS = ("mlm", "causal", "writing", "clip", "masked_series", "forecast")
"""Heads that other libraries have, too; decoders of pictures stay behind, and heads of series on other networks than
PatchTST's: a class token is all that its forecasts would be made of."""
PAIRED = {
    **dict.fromkeys(("bert", "ernie", "megatron-bert"), ("next_sentence", ("mlm", "network"))),
    "albert": ("sentence_order", ("mlm",)),
}
"""Heads of pairs that transformers has, by type, and the kinds of part that they leave with."""


@dataclass(frozen=True)
class Listed:
    """A part that is not loaded yet. backbones: names of its networks by role. head: file of its head, or None. pair:
    file of a head of pairs that transformers has, too."""

    name: str
    kind: str
    backbones: dict[str, str]
    head: str | None = None
    pair: str | None = None

    def load(self, export: Path) -> LeavingPart:
        """Raises DataError where something of it is not there."""
        members = {role: load_member(export, name) for role, name in self.backbones.items()}
        pair = {} if self.pair is None else load_head(export / "heads" / f"{self.pair}.safetensors").tensors
        if self.head is None:
            return LeavingPart(self.name, self.kind, members, {}, pair=pair)
        head = load_head(export / "heads" / f"{self.head}.safetensors")
        return LeavingPart(self.name, self.kind, members, head.tensors, head.settings, pair)


def has_pooler_switch(model: PreTrainedModel) -> bool:
    return POOLER in inspect.signature(type(model).__init__).parameters


def load_member(export: Path, name: str) -> PartNetwork:
    """A network of an export folder; without its pooler where its class can do without. Raises DataError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = load_backbone(export / name)
    if has_pooler_switch(model):
        setattr(model, "pooler", None)  # noqa: B010 - as its class does where it is told to make none
    stored: set[str] = set()
    for file in (export / name).glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            stored.update(opened.keys())
    untrained = sorted((unused_parameters(model) & model.state_dict().keys()) - stored)
    return PartNetwork(name, model, exported_input(export / name), tuple(untrained))


def parts_of(export: Path, heads: Mapping[str, Head]) -> dict[str, Listed]:
    """By name: each network, with its head where it has just one, and each head that is of several networks or not the
    only one of its network.

    Args:
        heads: those of the export.
    """
    everything, heads = heads, {name: head for name, head in heads.items() if _leaves(export, head)}
    networks = sorted(path.parent.name for path in export.glob(f"*/{CONFIG}"))
    found: dict[str, Listed] = {}
    of_one = {name: [key for key, head in heads.items() if list(head.backbones.values()) == [name]]
              for name in networks}  # fmt: skip
    for name in networks:
        role = exported_input(export / name).modality
        own = of_one[name][0] if len(of_one[name]) == 1 else None
        kind = heads[own].kind if own is not None else "network"
        found[name] = Listed(name, kind, {role: name}, own, _pair_of(export / name, kind, everything))
    for key, head in heads.items():
        if [key] not in of_one.values():
            name = key if key not in networks else f"{key}-head"
            found[name] = Listed(name, head.kind, dict(head.backbones), key)
    return found


def _leaves(export: Path, head: Head) -> bool:
    if head.kind not in ("masked_series", "forecast"):
        return head.kind in KINDS
    config = json.loads((export / head.backbones["series"] / CONFIG).read_text())
    return config["model_type"] == "patchtst" and not (head.kind == "forecast" and config["use_cls_token"])


def _pair_of(folder: Path, kind: str, heads: Mapping[str, Head]) -> str | None:
    """The head of pairs that leaves with the network in a folder as a part of a kind, where there is just one."""
    task, kinds = PAIRED.get(json.loads((folder / CONFIG).read_text())["model_type"], ("", ()))
    own = [(name, head) for name, head in heads.items() if list(head.backbones.values()) == [folder.name]]
    fitting = [name for name, head in own if head.kind == task]
    return fitting[0] if len(fitting) == 1 and kind in kinds else None


def chosen_parts(parts: Mapping[str, Listed], name: str | None) -> list[Listed]:
    """All, or the one of a name. Raises ExportError."""
    if name is None:
        return list(parts.values())
    if name not in parts:
        raise ExportError(f"--part: value {name!r}: not in the export{nearest(name, sorted(parts))}; there is: "
                          f"{', '.join(sorted(parts))}")
    return [parts[name]]
