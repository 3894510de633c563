"""Masked language modelling: 15 % of the tokens are hidden and predicted (BERT, https://arxiv.org/abs/1810.04805).

text ── window ── tokens ── mask 80/10/10 ── backbone ── head ── cross-entropy on the masked tokens
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field

from bigssl import distributed
from bigssl.data import decode
from bigssl.data import text as textual
from bigssl.data.stream import Sample
from bigssl.nets.heads import MaskedLanguageHead
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective, ObjectiveConfig, tower

CHARACTERS_PER_TOKEN = 8  # generous: a window cut from a long document must fill the sequence


def most_masked(length: int, ratio: float) -> int:
    """Tokens of a sequence that are masked at most, which spares the GPU telling the host how many there are.

    Six standard deviations above the mean: where chance goes further (once in 10^8 sequences of 128 tokens), masking
    draws again.
    """
    return min(length, math.ceil(length * ratio + 6 * math.sqrt(length * ratio * (1 - ratio))))


class Mlm(Objective):
    """Predict masked tokens (BERT)."""

    class Config(ObjectiveConfig):
        backbone: str = "text"
        ratio: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are predicted")

    preset = {"objective": {}, "backbones": {"text": "bert"}}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = tower(towers, config.backbone, "objective.backbone", text=True)
        self.head = MaskedLanguageHead(self.backbone.token_embedding)

    def sources(self) -> list[str]:
        return [self.config.source]

    def prepare(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        tokenizer, length = self.backbone.tokenizer, self.backbone.length
        document = decode.text(decode.field(sample, ("txt",)))
        window = textual.random_window(document, rng, length * CHARACTERS_PER_TOKEN)
        input_ids, attention_mask = textual.encode(tokenizer, window, length)
        masked, labels = self._mask(input_ids, rng)
        return {"input_ids": masked, "attention_mask": attention_mask, "labels": labels}

    def _mask(self, input_ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Masked ids and labels, of which no more than `most_masked` are set: `forward` counts on it."""
        tokenizer, ratio = self.backbone.tokenizer, self.config.ratio
        special, most = textual.special_mask(tokenizer, input_ids), most_masked(self.backbone.length, ratio)
        while True:
            masked, labels = textual.mask_tokens(
                input_ids, special, rng, vocab_size=len(tokenizer), mask_id=tokenizer.mask_token_id, ratio=ratio
            )
            if (labels != textual.IGNORE).sum() <= most:
                return masked, labels

    def forward(self, batch: dict[str, torch.Tensor]) -> Losses:
        """The loss is NaN, at which the engine stops, where more tokens are labelled than `prepare` ever labels."""
        hidden = self.backbone.tokens(batch["input_ids"], batch["attention_mask"])
        most = len(batch["labels"]) * most_masked(self.backbone.length, self.config.ratio)
        total = self.head(hidden, batch["labels"], most).float()
        loss = distributed.global_mean(total, (batch["labels"] != -100).sum())
        return Losses(loss, math.log(self.backbone.vocabulary))
