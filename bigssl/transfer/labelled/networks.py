"""Networks that classify, to be trained: a backbone with a new head."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.nets.modality import Modality, modality_of_type
from bigssl.nets.modality.kinds import unused_parameters
from bigssl.transfer.features import embed, evaluating
from bigssl.transfer.inputs import Input, TextInput
from bigssl.transfer.leaving.classifier import CLASSIFIERS


class Classifier(nn.Module):
    """A backbone and a head. Of parts none of whose parameters is trained, neither dropout nor the statistics of
    BatchNorm are at work while the rest is.

    Attributes:
        model: transformers' own class for classification, which holds the backbone, or the bare backbone.
        base: the backbone.
        head: mean features -> logits, where there is no such class.
    """

    def __init__(self, model: PreTrainedModel, base: PreTrainedModel, row: Modality, head: nn.Linear | None) -> None:
        super().__init__()
        self.model, self.head, self._row = model, head, row
        self._base = [base]  # a part of `model`

    @property
    def base(self) -> PreTrainedModel:
        return self._base[0]

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits float32 [B, classes] of collated views on the network's device."""
        if self.head is not None:
            return self.head(self._row.features(self.base, batch).float())
        logits: Tensor = self.model(**self._row.inputs(self.base, batch)).logits
        return logits.float()

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if mode:
            for module in self.base.modules():
                own = list(module.parameters())
                if own and not any(parameter.requires_grad for parameter in own):
                    module.eval()
        return self

    def new_parameters(self) -> list[nn.Parameter]:
        """Those outside the backbone."""
        inside = {id(parameter) for parameter in self.base.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in inside]


def with_head(
    backbone: PreTrainedModel, takes: Input, sample: Mapping[str, Tensor], classes: Sequence[str], several: bool,
    seed: int,
) -> Classifier:
    """A classifier with the weights of the backbone, on its device; what is new, fresh weights by the seed. (So is what
    of the backbone nothing was learnt of, as a pooler.) The global generators are left as they were.

    Where transformers has a class for classification with this backbone it is that class, else a linear layer on the
    mean features.

    Args:
        takes: what the backbone is given.
        sample: collated views of one, on the CPU.
    """
    row = modality_of_type(backbone.config.model_type)
    assert row is not None  # `exported_input` has looked it up
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _of_transformers(backbone, takes, classes, several)
        if model is not None:
            return Classifier(model, getattr(model, model.base_model_prefix), row, None).to(backbone.device)
        with evaluating(backbone):
            width = embed(backbone, {name: value.to(backbone.device) for name, value in sample.items()}).shape[1]
        head = nn.Linear(width, len(classes))
    return Classifier(backbone, backbone, row, head).to(backbone.device)


def has_class(backbone: PreTrainedModel, takes: Input) -> bool:
    """Whether the classifier is a class of transformers. Weights are neither read nor made: `backbone` may be on the
    device "meta" (before a run), or partitioned."""
    with torch.device("meta"):
        return _without_weights(backbone, takes, ["a", "b"], False) is not None


def _of_transformers(
    backbone: PreTrainedModel, takes: Input, classes: Sequence[str], several: bool
) -> PreTrainedModel | None:
    """With the weights of the backbone, but for what nothing was learnt of."""
    model = _without_weights(backbone, takes, classes, several)
    if model is not None:
        unlearnt = unused_parameters(backbone)
        known = {name: value for name, value in backbone.state_dict().items() if name not in unlearnt}
        getattr(model, model.base_model_prefix).load_state_dict(known, strict=False)
    return model


def _without_weights(
    backbone: PreTrainedModel, takes: Input, classes: Sequence[str], several: bool
) -> PreTrainedModel | None:
    """None where there is no such class, or one in which the weights of the backbone have no place, by their names.

    A class that reads the last token of a text finds it by the padding, which the config of a backbone need not name,
    or names by another tokenizer: it is this one's. None where that has none.
    """
    kind: Any = CLASSIFIERS.get(takes.modality)
    if kind is None or type(backbone.config) not in kind._model_mapping:
        return None
    config = copy.deepcopy(backbone.config)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    config.problem_type = "multi_label_classification" if several else "single_label_classification"
    if isinstance(takes, TextInput):
        if takes.tokenizer.pad_token_id is None:
            return None
        config.pad_token_id = takes.tokenizer.pad_token_id
    model: PreTrainedModel = kind.from_config(config, dtype=torch.float32)
    base = getattr(model, model.base_model_prefix, None)
    if not isinstance(base, PreTrainedModel):
        return None
    known, places = backbone.state_dict().keys() - unused_parameters(backbone), base.state_dict().keys()
    return model if known <= places and places - known <= unused_parameters(base) else None
