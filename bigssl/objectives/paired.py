"""What the tasks of pairs of texts have in common: their inputs, their head, and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bigssl.config.errors import ConfigError
from bigssl.data.kinds.texts import pairs
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.heads.pooled import PooledHead
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, ObjectiveConfig
from bigssl.objectives.needs import Needs
from bigssl.objectives.shared import Host

OF_PAIRS = Needs("text", sees="both", tokens=("pad_token", "cls_token", "sep_token"), segments=True)
_LEAST = pairs.FRAME + 2  # tokens of a pair


class PairConfig(ObjectiveConfig):
    """Fields of a task on pairs of texts."""

    backbone: str = "text"
    short: float = Field(pairs.SHORT, ge=0, le=1, description="share of the pairs that are made shorter, by any length")


class Paired(Host):
    """Mixed into an `Objective` that tells one of two classes of a pair, which `pairs.DRAWN` draws.

    head_kind: of the head that it exports, and the name of the drawing.
    """

    config: Any
    head_kind: str

    def begin(self, backbone: Tower) -> None:
        """Makes the head. Raises ConfigError."""
        if backbone.length < _LEAST:
            name = self.config.backbone
            raise ConfigError(f"backbones.{name}.length: value {backbone.length}; allowed: >= {_LEAST}, for [CLS] text "
                              "[SEP] text [SEP]")  # fmt: skip
        self.backbone, self.head = backbone, PooledHead(backbone.dim, 2)

    def prepare_words(self, sample: Sample, rng: np.random.Generator, more: More) -> tuple[dict[str, Any], np.ndarray]:
        tokenizer, length = self.backbone.tokenizer, self.backbone.length
        document = pairs.sentences_of(sample, rng)
        at = pairs.neighbours_in(document, tokenizer, rng, pairs.target_of(length, self.config.short, rng))
        drawn = pairs.DRAWN[self.head_kind](document, at, rng, lambda: more(rng, partial(pairs.sentences_of, rng=rng)))
        inputs, words = pairs.encode_pair(tokenizer, drawn.first, drawn.second, length, rng)
        return inputs | self.told(drawn), words

    def told(self, drawn: pairs.DrawnPair) -> dict[str, Any]:
        """Fields of the sample beside the inputs."""
        return {"label": drawn.label}

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        return self.prepare_words(sample, rng, more)[0]

    def judge(self, hidden: Tensor, batch: Mapping[str, Tensor], at: Progress) -> Losses:
        logits, labels = self.head(hidden), batch["label"]
        right = (logits.detach().argmax(1) == labels).float().mean()
        blind, name = self.blind(labels)
        return Losses(F.cross_entropy(logits.float(), labels), blind, blind_name=name, stats={"accuracy": right})

    def blind(self, labels: Tensor) -> tuple[float | Tensor, str]:
        """The loss of the best predictor that sees no text, and what it is called."""
        raise NotImplementedError

    def exports(self) -> dict[str, Head | Network]:
        """Dense layer and classifier, as `dense` and `classifier`."""
        tensors: dict[str, Tensor] = dict(self.head.named_parameters())
        return {self.head_kind: Head(self.head_kind, {"text": self.config.backbone}, tensors)}
