"""Denoising: the text again, from one with its sentences in another order and with spans behind a mask (BART,
https://arxiv.org/abs/1910.13461).

    text ── window ── tokens ─┬─ sentences permuted ── spans infilled ── encoder ─┐
                              └──────────── one position late ── decoder ─────────┴─ head ── cross-entropy of each token

The noise stands in `data/kinds/texts/infilling.py`. What is asked is the whole text with [CLS] and [SEP] around it, as
in the paper's code; the decoder begins with [SEP]. A text without tokens adds nothing to the loss and is counted in
stats/empty; of one that is longer than the network takes, each epoch has a window.

The blind line is token frequencies. stats/hidden is the share of the tokens that the source does not show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.data.kinds import decode
from bigssl.data.kinds.masking import IGNORE
from bigssl.data.kinds.text import padded, window_for
from bigssl.data.kinds.texts.infilling import FRAMED, noised, tokens_by_sentence
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.heads.frequencies import TokenFrequencies
from bigssl.nets.heads.writing import BIAS, writing_head, written_states
from bigssl.nets.modality.kinds import ENCODER_DECODER
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig
from bigssl.objectives.counting import Counting, mean_of_step
from bigssl.objectives.mlm import TOKENS
from bigssl.objectives.needs import Needs


class Denoise(Counting, Objective):
    """Write a text again whose sentences were permuted and whose spans were masked (BART)."""

    class Config(ObjectiveConfig):
        backbone: str = "text"
        ratio: float = Field(0.3, gt=0, lt=1, description="share of the tokens that spans hold")
        span: float = Field(3.0, ge=1, description="mean length of the spans, in tokens (Poisson)")
        permute: bool = Field(True, description="sentences change places")

    adjustable = ("ratio", "span", "permute")
    causal = True
    takes = {"backbone": Needs("text", kinds=ENCODER_DECODER, why="which has no decoder", tokens=TOKENS)}
    preset = {"objective": {}, "backbones": {"text": "bart"}, "data": "text/train"}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        _check_writing(f"backbones.{config.backbone}", self.backbone)
        self.head = writing_head(self.backbone.token_embedding, self.backbone.vocabulary, self.backbone.folder)
        self.frequencies = TokenFrequencies(self.backbone.vocabulary)

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        tokenizer, length = self.backbone.tokenizer, self.backbone.length
        document = decode.document(sample)
        text = document if isinstance(document, str) else "\n".join(document)
        config = self.config
        tokens = tokens_by_sentence(tokenizer, window_for(text, rng, length))
        source, target = noised(tokenizer, *tokens, rng, length, ratio=config.ratio, span=config.span,
                                permute=config.permute)  # fmt: skip
        return {
            "input_ids": padded(source, length, tokenizer.pad_token_id),
            "attention_mask": (np.arange(length) < len(source)).astype(np.int64),
            "labels": padded(target if len(target) > FRAMED else target[:0], length, IGNORE),
        }

    def assemble(self, by_source: dict[str, Any]) -> dict[str, Any]:
        """Adds how many tokens are labelled, as the host knows it."""
        batch: dict[str, Any] = super().assemble(by_source)
        return batch | {"labelled": int((batch["labels"] != IGNORE).sum())}

    def units(self, batch: dict[str, Any]) -> dict[str, int]:
        return {"": batch["labelled"]}

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        labels, mask = batch["labels"], batch["attention_mask"]
        hidden = written_states(self.backbone.model, batch["input_ids"], mask, labels)
        total, said = self.head(hidden.flatten(0, 1), labels.flatten())
        blind, everywhere = self.frequencies(labels)
        loss, blind = mean_of_step(batch, total.float(), blind, everywhere)
        sums = {"accuracy": said.correct.sum(), "hidden": self._hidden(batch)}
        stats = {name: distributed.global_mean(value, everywhere) for name, value in sums.items()}
        stats["padding"] = ((mask == 0).float().mean() + (labels == IGNORE).float().mean()) / 2
        stats["empty"] = (labels == IGNORE).all(1).float().mean()
        return Losses(loss, blind, blind_name="token frequencies", stats=stats)

    def _hidden(self, batch: dict[str, Any]) -> Tensor:
        """[] how many tokens of the texts the sources do not show."""
        asked = batch["labels"] != IGNORE
        shown = (batch["attention_mask"] > 0) & (batch["input_ids"] != self.backbone.tokenizer.mask_token_id)
        return asked.sum() - (shown & asked.any(1, keepdim=True)).sum()

    def exports(self) -> dict[str, Head | Network]:
        """What is not the backbone's: its weight is the token embedding."""
        return {"denoise": Head("writing", {"text": self.config.backbone}, {BIAS: self.head.final_logits_bias})}


def _check_writing(where: str, tower: Tower) -> None:
    """Raises ConfigError for a network whose decoder would write with other weights than it reads, or has nothing to
    begin with."""
    config, rows = tower.model.config, tower.vocabulary
    if not config.tie_word_embeddings:
        raise ConfigError(f"{where}.config.tie_word_embeddings: value false; allowed: true (encoder, decoder and head "
                          "have one token embedding)")  # fmt: skip
    begin = config.decoder_start_token_id
    if begin is None or not 0 <= begin < rows:
        raise ConfigError(f"{where}.init_from: its decoder_start_token_id is {begin}; allowed: the id of a token, below"
                          f" {rows} (vocab_size)")  # fmt: skip
