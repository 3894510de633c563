"""Masked language modelling: 15 % of the tokens are hidden and predicted (BERT, https://arxiv.org/abs/1810.04805).

    text ── window ── tokens ── mask 80/10/10 ── backbone ── head ── cross-entropy on the masked tokens

With `packing`, whole texts, in pieces where they are longer than a row, share rows without seeing each other. A text
with nothing to mask adds nothing to the loss and is counted in stats/unmaskable.

`ratio_end` moves the share of tokens along a line. `mask_share` and `random_share` are the 80 and 10 %: with 0 and 1 it
is word substitution, in which no mask stands and the words that were replaced are predicted. With `substitute: unigram`
what replaces them is as frequent as in texts: a token out of windows of four other documents of the source (`more`).

In a joint task it may mask the samples of another part and share its pass (`shares`): BERT's is `next_sentence`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds import text as textual
from bigssl.data.kinds.masking import IGNORE, MASKED, SWAPPED, Unit, corrupt, select, share_at
from bigssl.data.loading.collate import Ragged
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.chance.attention import Packing
from bigssl.nets.heads.base import masked_head
from bigssl.nets.heads.frequencies import TokenFrequencies
from bigssl.nets.packed import check_packable, packed_tokens
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig
from bigssl.objectives.counting import Counting, mean_of_step
from bigssl.objectives.needs import Needs
from bigssl.objectives.packing import labelled_pieces, packed_rows
from bigssl.objectives.shared import Guest

RATIO_END = "that share at the end of the run, to which it goes along a line; none: it stays"
WINDOWS, MOST_WINDOWS = 4, 32  # of other documents, for what stands in; draws until so many hold a token
TOKENS = ("mask_token", "pad_token", "cls_token", "sep_token")


class Mlm(Guest, Counting, Objective):
    """Predict masked tokens (BERT)."""

    class Config(ObjectiveConfig):
        backbone: str = "text"
        ratio: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are predicted")
        ratio_end: float | None = Field(None, gt=0, lt=1, description=RATIO_END)
        masking: Unit = Field("token", description="what is masked as a whole: token, word (see docs/data.md) or span")
        mask_share: float = Field(MASKED, ge=0, le=1, description="share of these that a mask stands in for")
        random_share: float = Field(SWAPPED, ge=0, le=1, description="share of these that another token stands in for")
        substitute: Literal["uniform", "unigram"] = Field(
            "uniform", description="that token: any of the vocabulary, or one of other documents, by its frequency"
        )
        packing: bool = Field(False, description="several texts in a row of the backbone's length, none cut off")
        longest: int = Field(
            1 << 18, ge=1, description="packing: characters; a longer text gives a random window of as many each epoch"
        )

        @model_validator(mode="after")
        def _longest_is_used(self) -> Mlm.Config:
            if not self.packing:
                self.refuse_idle("without packing", "longest")
            return self

        @model_validator(mode="after")
        def _something_stands_in(self) -> Mlm.Config:
            both = self.mask_share + self.random_share
            if not 0 < both <= 1 + 1e-9:
                raise ValueError(f"mask_share {self.mask_share} and random_share {self.random_share} sum to {both:g}; "
                                 "allowed: more than 0 (what is asked for would be shown), at most 1")  # fmt: skip
            if not self.random_share:
                self.refuse_idle("with random_share 0", "substitute")
            return self

    adjustable = ("ratio", "ratio_end", "masking", "mask_share", "random_share", "substitute", "packing", "longest")
    takes = {"backbone": Needs("text", sees="both", tokens=TOKENS)}
    preset = {"objective": {}, "backbones": {"text": "bert"}}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.head = masked_head(self.backbone.token_embedding, self.backbone.model.config)
        self.frequencies = TokenFrequencies(self.backbone.vocabulary)
        self.draws_more = config.substitute == "unigram"
        if config.packing:
            check_packable(self.backbone.model, "objective.packing")

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        tokenizer, length = self.backbone.tokenizer, self.backbone.length
        document = decode.running_text(sample)
        if self.config.packing:
            window = textual.random_window(document, rng, self.config.longest)
            pool = self._pool(rng, more, max(length, len(window) // WINDOWS))
            cut = textual.encode_pieces(tokenizer, window, length)
            pieces = [self._mask(*piece, sample.done, pool, rng) for piece in cut]
            joined = [Ragged(np.concatenate(parts)) for parts in zip(*pieces, strict=True)]
            sizes = Ragged(np.array([len(ids) for ids, _ in pieces]))
            return {"input_ids": joined[0], "labels": joined[1], "sizes": sizes}
        window, pool = textual.window_for(document, rng, length), self._pool(rng, more, length)
        input_ids, attention_mask, words = textual.encode_words(tokenizer, window, length)
        masked, labels = self._mask(input_ids, words, sample.done, pool, rng)
        return {"input_ids": masked, "attention_mask": attention_mask, "labels": labels}

    def _mask(
        self, input_ids: np.ndarray, words: np.ndarray, done: float, pool: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        tokenizer, config = self.backbone.tokenizer, self.config
        selection = select(config.masking, words, rng, share_at(config.ratio, config.ratio_end, done))
        return corrupt(input_ids, selection, rng, vocab_size=len(tokenizer), mask_id=tokenizer.mask_token_id,
                       shares=(config.mask_share, config.random_share), pool=pool)  # fmt: skip

    def _pool(self, rng: np.random.Generator, more: More, characters: int) -> np.ndarray | None:
        """Tokens of windows of other documents, of so many characters each; None where the vocabulary is one."""
        if not self.draws_more:
            return None

        def tokens(sample: Sample) -> np.ndarray:
            document = decode.running_text(sample)
            window = textual.random_window(document, rng, characters)
            ids, words = textual.ids_and_words(self.backbone.tokenizer, window)
            whole = words < (words.max(initial=-1) if len(window) < len(document) else len(ids))  # the last may be cut
            return ids[(words >= 0) & whole]

        found = list[np.ndarray]()
        for _ in range(MOST_WINDOWS):
            found += [drawn] if len(drawn := more(rng, tokens)) else []
            if len(found) == WINDOWS:
                break
        if not found:
            raise DataError(f"of {MOST_WINDOWS} other documents none has a token to stand in for one; allowed: "
                            "documents of text, or substitute: uniform")  # fmt: skip
        return np.concatenate(found)

    def guest_reason(self) -> str:
        return "packing: value true, but the samples are those of the other part; allowed: false" * self.config.packing

    def change(
        self, sample: Sample, prepared: dict[str, Any], words: np.ndarray, rng: np.random.Generator, more: More
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        pool = self._pool(rng, more, self.backbone.length)
        masked, labels = self._mask(prepared["input_ids"], words, sample.done, pool, rng)
        return prepared | {"input_ids": masked}, {"labels": labels}

    def assemble(self, by_source: dict[str, Any]) -> dict[str, Any]:
        """Adds how many tokens are labelled, counted where they are: a GPU would have to stop to tell."""
        batch: dict[str, Any] = super().assemble(by_source)
        if self.config.packing:
            batch = self._packed(batch)
        return batch | {"labelled": int((batch["labels"] != IGNORE).sum())}

    def _packed(self, batch: dict[str, Any]) -> dict[str, Any]:
        pieces = labelled_pieces(batch)
        useful = [piece for piece in pieces if (piece["labels"] != IGNORE).any()]
        packed = packed_rows(useful, self.backbone.length, self.backbone.tokenizer.pad_token_id)
        return packed | {"unmaskable": torch.tensor(1 - len(useful) / len(pieces))}

    def units(self, batch: dict[str, Any]) -> dict[str, int]:
        return {"": batch["labelled"]}

    def exports(self) -> dict[str, Head | Network]:
        """Without the decoder's weight, which is the backbone's token embedding."""
        tensors: dict[str, Tensor] = {name: value for name, value in self.head.named_parameters() if name != "weight"}
        return {"mlm": Head("mlm", {"text": self.config.backbone}, tensors)}

    def hidden(self, batch: dict[str, Any]) -> Tensor:
        if self.config.packing:
            packing = Packing(batch["groups"], batch["found"])
            return packed_tokens(self.backbone.model, batch["input_ids"], batch["positions"], packing)
        return self.backbone.hidden(batch)

    def judge(self, hidden: Tensor, batch: dict[str, Any], at: Progress) -> Losses:
        total = self.head(hidden, batch["labels"], batch["labelled"]).float()
        loss, blind = mean_of_step(batch, total, *self.frequencies(batch["labels"]))
        return Losses(loss, blind, blind_name="token frequencies", stats=self._stats(batch))

    def _stats(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The shares of tokens that are padding, and of texts or pieces with nothing to predict."""
        if self.config.packing:
            return {"padding": (batch["segments"] == 0).float().mean(), "unmaskable": batch["unmaskable"]}
        unmaskable = (batch["labels"] == IGNORE).all(1).float().mean()
        return {"padding": (batch["attention_mask"] == 0).float().mean(), "unmaskable": unmaskable}
