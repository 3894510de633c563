"""Classification by frozen features with few trained weights: those of the last layers, or low-rank adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator
from transformers import PreTrainedModel

from bigssl.config.section import PositiveInt
from bigssl.data.errors import DataError
from bigssl.nets.depth import depths
from bigssl.transfer.bench import Bench
from bigssl.transfer.labelled.adapters import adapt, linear_layers
from bigssl.transfer.labelled.fit import Groups, layer_groups
from bigssl.transfer.labelled.networks import Classifier
from bigssl.transfer.labelled.tuning import Tuning, tuned_row
from bigssl.transfer.scores import ScoreRow

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked


class Hybrid(Tuning):
    """Label by the network with a new head, of which only the last layers, or adapters of low rank, are trained."""

    preset = {"train": "bigssl/demo/emoji/train", "queries": "bigssl/demo/emoji/val", "label": "category",
              "fractions": [0.3, 1.0], "seeds": 1, "epochs": 1,
              "least_steps": 0, "top": 1}  # fmt: skip
    words = "hybrid"

    backbone: str = "image"
    top: PositiveInt | None = Field(
        None, description="the last layers that are trained, or stages of a convolutional network; 1 without lora"
    )
    lora: PositiveInt | None = Field(None, description="rank of adapters of all linear layers, trained in their place")

    @model_validator(mode="after")
    def _one_way(self) -> Hybrid:
        if self.top is not None and self.lora is not None:
            raise ValueError(f"top {self.top} and lora {self.lora}; allowed: one of them")
        return self

    def check(self, seen: Checked) -> None:
        super().check(seen)
        model = seen.backbone("backbone").model
        try:
            if self.lora is None:
                layers_from(model, self.top or 1)
            else:
                linear_layers(model)
        except DataError as error:
            seen.refuse("top" if self.lora is None else "lora", str(error))

    def tuned(self, network: Classifier, seed: int) -> Groups:
        if self.lora is not None:
            adapt(network.base, self.lora, seed)
        else:
            first = layers_from(network.base, self.top or 1)
            depth, _ = depths(network.base)
            for name, parameter in network.base.named_parameters():
                parameter.requires_grad_(depth[name] >= first)
        return layer_groups(network.base, self.layer_decay, network.new_parameters())

    def run(self, bench: Bench) -> list[ScoreRow]:
        what = f"its last {self.top or 1} layers" if self.lora is None else f"adapters of rank {self.lora}"
        return [tuned_row(bench, self, f"the frozen network and {what}, tuned")]


def layers_from(model: PreTrainedModel, top: int) -> int:
    """The depth (`bigssl.nets.depth`) of the first of the last `top` layers. DataError where it has no such."""
    try:
        behind = depths(model)[1]
    except ValueError as error:
        raise DataError(f"{error}; allowed: lora in its place, or task finetune") from None
    if top >= behind:
        raise DataError(f"the network has {behind - 1} layers; allowed: 1 to {behind - 1}")
    return behind - top
