"""Classification by the whole network, trained on the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from bigssl.data.errors import DataError
from bigssl.transfer.bench import Bench
from bigssl.transfer.inputs import input_of
from bigssl.transfer.labelled.fit import Groups, layer_groups
from bigssl.transfer.labelled.networks import Classifier, has_class
from bigssl.transfer.labelled.tuning import Tuning, tuned_row
from bigssl.transfer.scores import ScoreRow

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked


class Finetune(Tuning):
    """Label by the network with a new head, all of whose weights are trained, lower layers at lower rates."""

    preset = {"train": "bigssl/demo/emoji/train", "queries": "bigssl/demo/emoji/val", "label": "category",
              "fractions": [0.3, 1.0], "seeds": 1, "epochs": 2,
              "least_steps": 0}  # fmt: skip
    words = "fine-tuning"

    backbone: str = "image"
    keep: bool = Field(
        False, description="write the classifier of seed 0 with all labels to networks/NAME, as a class of transformers"
    )

    def check(self, seen: Checked) -> None:
        super().check(seen)
        tower = seen.backbone("backbone")
        try:
            layer_groups(tower.model, self.layer_decay)
        except DataError as error:
            seen.refuse("layer_decay", str(error))
        if self.keep and not has_class(tower.model, input_of(tower)):
            kind = tower.model.config.model_type
            unpadded = tower.tokenizer is not None and tower.tokenizer.pad_token is None
            need = " that does without padding, which its tokenizer has none for" * unpadded
            seen.refuse("keep", f"transformers has no classifier of type {kind}{need}; allowed: false")

    def tuned(self, network: Classifier, seed: int) -> Groups:
        return layer_groups(network.base, self.layer_decay, network.new_parameters())

    def run(self, bench: Bench) -> list[ScoreRow]:
        return [tuned_row(bench, self, "the whole network, fine-tuned", self.keep)]
