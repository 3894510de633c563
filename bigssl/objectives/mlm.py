"""Masked language modelling: 15 % of the tokens are hidden and predicted (BERT, https://arxiv.org/abs/1810.04805).

    text ── window ── tokens ── mask 80/10/10 ── backbone ── head ── cross-entropy on the masked tokens

With `packing`, whole texts, in pieces where they are longer than a row, share rows without seeing each other. A text
with nothing to mask adds nothing to the loss and is counted in stats/unmaskable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from bigssl.data.kinds import decode
from bigssl.data.kinds import text as textual
from bigssl.data.kinds.masking import IGNORE, Unit, corrupt, select
from bigssl.data.kinds.packing import pack_rows, side_by_side, split_rows
from bigssl.data.loading.collate import Ragged
from bigssl.data.loading.loader import SEEDS
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.chance.attention import Packing
from bigssl.nets.chance.seeds import another
from bigssl.nets.heads.base import masked_head
from bigssl.nets.heads.frequencies import TokenFrequencies
from bigssl.nets.packed import check_packable, packed_tokens
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig
from bigssl.objectives.counting import Counting, mean_of_step
from bigssl.objectives.needs import Needs

TOKENS = ("mask_token", "pad_token", "cls_token", "sep_token")
CHARACTERS_PER_TOKEN = 8  # generous: a window cut from a long document must fill the sequence


class Mlm(Counting, Objective):
    """Predict masked tokens (BERT)."""

    class Config(ObjectiveConfig):
        backbone: str = "text"
        ratio: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are predicted")
        masking: Unit = Field("token", description="what is masked as a whole: token, word (see docs/data.md) or span")
        packing: bool = Field(False, description="several texts in a row of the backbone's length, none cut off")
        longest: int = Field(
            1 << 18, ge=1, description="packing: characters; a longer text gives a random window of as many each epoch"
        )

        @model_validator(mode="after")
        def _longest_is_used(self) -> Mlm.Config:
            if not self.packing:
                self.refuse_idle("without packing", "longest")
            return self

    adjustable = ("ratio", "masking", "packing", "longest")
    takes = {"backbone": Needs("text", sees="both", tokens=TOKENS)}
    preset = {"objective": {}, "backbones": {"text": "bert"}}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.head = masked_head(self.backbone.token_embedding, self.backbone.model.config)
        self.frequencies = TokenFrequencies(self.backbone.vocabulary)
        if config.packing:
            check_packable(self.backbone.model, "objective.packing")

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        tokenizer, length = self.backbone.tokenizer, self.backbone.length
        document = decode.running_text(sample)
        if self.config.packing:
            window = textual.random_window(document, rng, self.config.longest)
            pieces = [self._mask(*piece, rng) for piece in textual.encode_pieces(tokenizer, window, length)]
            joined = [Ragged(np.concatenate(parts)) for parts in zip(*pieces, strict=True)]
            sizes = Ragged(np.array([len(ids) for ids, _ in pieces]))
            return {"input_ids": joined[0], "labels": joined[1], "sizes": sizes}
        window = textual.random_window(document, rng, length * CHARACTERS_PER_TOKEN)
        input_ids, attention_mask, words = textual.encode_words(tokenizer, window, length)
        masked, labels = self._mask(input_ids, words, rng)
        return {"input_ids": masked, "attention_mask": attention_mask, "labels": labels}

    def _mask(
        self, input_ids: np.ndarray, words: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        tokenizer = self.backbone.tokenizer
        selection = select(self.config.masking, words, rng, self.config.ratio)
        return corrupt(input_ids, selection, rng, vocab_size=len(tokenizer), mask_id=tokenizer.mask_token_id)

    def assemble(self, by_source: dict[str, Any]) -> dict[str, Any]:
        """Adds how many tokens are labelled, counted where they are: a GPU would have to stop to tell."""
        batch: dict[str, Any] = super().assemble(by_source)
        if self.config.packing:
            batch = self._packed(batch)
        return batch | {"labelled": int((batch["labels"] != IGNORE).sum())}

    def _packed(self, batch: dict[str, Any]) -> dict[str, Any]:
        texts = zip(batch[SEEDS], batch["input_ids"], strict=True)
        tokens = [another(seed, torch.arange(len(ids))) for seed, ids in texts]  # whatever row they come into
        pieces = split_rows(batch | {SEEDS: tokens}, "sizes")
        useful = [piece for piece in pieces if (piece["labels"] != IGNORE).any()]
        fill = {"input_ids": self.backbone.tokenizer.pad_token_id, "labels": IGNORE, SEEDS: 0}
        packed = pack_rows(useful, self.backbone.length, fill)
        groups, found = side_by_side(packed["segments"])
        return packed | {"groups": groups, "found": found, "unmaskable": torch.tensor(1 - len(useful) / len(pieces))}

    def units(self, batch: dict[str, Any]) -> dict[str, int]:
        return {"": batch["labelled"]}

    def exports(self) -> dict[str, Head | Network]:
        """Without the decoder's weight, which is the backbone's token embedding."""
        tensors: dict[str, Tensor] = {name: value for name, value in self.head.named_parameters() if name != "weight"}
        return {"mlm": Head("mlm", {"text": self.config.backbone}, tensors)}

    def _hidden(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Last hidden states; the shares of tokens that are padding, and of texts or pieces with nothing to predict."""
        if self.config.packing:
            packing = Packing(batch["groups"], batch["found"])
            hidden = packed_tokens(self.backbone.model, batch["input_ids"], batch["positions"], packing)
            return hidden, {"padding": (batch["segments"] == 0).float().mean(), "unmaskable": batch["unmaskable"]}
        hidden = self.backbone.hidden(batch)
        unmaskable = (batch["labels"] == IGNORE).all(1).float().mean()
        return hidden, {"padding": (batch["attention_mask"] == 0).float().mean(), "unmaskable": unmaskable}

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        hidden, stats = self._hidden(batch)
        total = self.head(hidden, batch["labels"], batch["labelled"]).float()
        loss, blind = mean_of_step(batch, total, *self.frequencies(batch["labels"]))
        return Losses(loss, blind, blind_name="token frequencies", stats=stats)
