"""Next sentence prediction (BERT, Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    document ── passage ── what follows it, or a passage of another document ── [CLS] a [SEP] b [SEP] ── backbone
                                              which of the two?  ── linear ── tanh ── dense ── at [CLS] ─────┘

Passages are of whole sentences (`bigssl/data/kinds/texts/pairs.py` says how documents are cut), that of another
document of as many as what follows, so that its length tells little. Label 1: of another document, half of the pairs.
Where a passage of another document stands in the first's own (copies, quotations), it is no negative: what follows
takes its place, label 0, and stats/recurring has its share. Loss: cross-entropy. Blind line: of the frequencies of the
labels so far, ln 2 where nothing recurs.

Documents that are empty or of one sentence are bad samples (`data.on_error`). RoBERTa found the task to be of little
use, and ALBERT that topics alone solve it; `sentence_order` is the harder one. It is here for BERT: with `mlm` that
`shares` its pass (launch/recipes/cpu/bert.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bigssl.data.kinds.texts.pairs import DrawnPair
from bigssl.nets.heads.frequencies import TokenFrequencies
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective
from bigssl.objectives.paired import OF_PAIRS, PairConfig, Paired


class NextSentence(Paired, Objective):
    """Tell whether a passage follows another one or is of another document (BERT)."""

    class Config(PairConfig):
        pass

    adjustable = ("short",)
    takes = {"backbone": OF_PAIRS}
    accumulates = draws_more = True
    head_kind = "next_sentence"
    preset = {"objective": {}, "backbones": {"text": "bert"}, "data": "text/train"}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.begin(self.backbone_of(towers, "backbone"))
        self.frequencies = TokenFrequencies(2)

    def told(self, drawn: DrawnPair) -> dict[str, Any]:
        return super().told(drawn) | {"recurring": drawn.recurring}

    def unfit(self, prepared: Sequence[dict[str, Any]]) -> str:
        found = [bool(each["recurring"]) for each in prepared if each["label"] or each["recurring"]]
        return "" if not all(found) or not found else (
            "each passage that was drawn from another document stands in the first one as well: nothing is left to be "
            "told apart; allowed: different documents (`bigssl shards clean` leaves out copies)"
        )

    def assemble(self, by_source: dict[str, Any]) -> dict[str, Any]:
        batch: dict[str, Any] = super().assemble(by_source)
        return batch | {"recurring": batch["recurring"].float().mean()}

    def judge(self, hidden: Tensor, batch: Mapping[str, Tensor], at: Progress) -> Losses:
        losses = super().judge(hidden, batch, at)
        return losses._replace(stats=losses.stats | {"recurring": batch["recurring"]})

    def blind(self, labels: Tensor) -> tuple[float | Tensor, str]:
        return self.frequencies(labels)[0], "label frequencies"
