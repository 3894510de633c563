"""Sentence order prediction (ALBERT, Lan et al. 2020, https://arxiv.org/abs/1909.11942).

    document ── two passages that follow each other, or in each other's place ── [CLS] a [SEP] b [SEP] ── backbone
                                         swapped?  ── linear ── tanh ── dense ── at [CLS] ───────────────┘

Both are of one document: no topic tells, as it does in `next_sentence`. Passages are of whole sentences
(`bigssl/data/kinds/texts/pairs.py` says how documents are cut). Label 1: swapped, half of the pairs. Loss:
cross-entropy. Blind line: ln 2. Documents that are empty or of one sentence are bad samples (`data.on_error`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective
from bigssl.objectives.paired import OF_PAIRS, PairConfig, Paired


class SentenceOrder(Paired, Objective):
    """Tell whether two consecutive passages were swapped (ALBERT)."""

    class Config(PairConfig):
        pass

    adjustable = ("short",)
    takes = {"backbone": OF_PAIRS}
    accumulates = True
    head_kind = "sentence_order"
    preset = {"objective": {}, "backbones": {"text": "bert"}, "data": "text/train"}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.begin(self.backbone_of(towers, "backbone"))

    def blind(self, labels: Tensor) -> tuple[float | Tensor, str]:
        return math.log(2), "guessing one of 2 orders"
