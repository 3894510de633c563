"""Causal language modelling: each token from those before it (GPT-2, Radford et al. 2019).

    text ── tokens ── pieces of the context's length ── rows ── backbone ── head ── cross-entropy of the next token

Whole texts share rows, each from position 0 and blind for the others; one that is longer than the context is cut into
pieces, of which every token is asked once (`data/kinds/texts/following.py`). Of a window, drawn at random from a text
that is longer than `longest`, whole pieces are taken, which leave no place of a row empty. Tokens of the backbone see
those before them only. Its output weights are its token embedding where its type ties them (`tie_word_embeddings`:
GPT-2), or else trained beside it (Llama), from those of the folder of `init_from` where it holds them. A text without
tokens adds nothing to the loss and is counted in stats/empty.

The blind line is token frequencies. With `z_loss`, z_loss · logsumexp² is added to the cross-entropy, and is stats/z.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.data.kinds import decode
from bigssl.data.kinds.masking import IGNORE
from bigssl.data.kinds.text import random_window
from bigssl.data.kinds.texts.following import following_pieces, frame_of
from bigssl.data.loading.collate import Ragged
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.chance.attention import Packing
from bigssl.nets.heads.following import lacking_in, next_token_head, stored_head
from bigssl.nets.heads.frequencies import TokenFrequencies
from bigssl.nets.modality.kinds import CAUSAL
from bigssl.nets.modality.vocabulary import special_id
from bigssl.nets.packed import check_attention, packed_tokens
from bigssl.nets.pretrained import PARTIAL
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig
from bigssl.objectives.counting import Counting, mean_of_step
from bigssl.objectives.needs import Needs
from bigssl.objectives.packing import labelled_pieces, packed_rows


class CausalLm(Counting, Objective):
    """Predict each next token (GPT)."""

    class Config(ObjectiveConfig):
        backbone: str = "text"
        longest: int = Field(
            1 << 18, ge=1, description="characters; of a longer text, a random window each epoch, cut to whole rows"
        )
        z_loss: float = Field(0.0, ge=0, description="times logsumexp², added to each token's loss; PaLM: 0.0001")
        softcap: float | None = Field(None, gt=0, description="bound of the logits; Gemma 2: 30")

    adjustable = ("longest", "z_loss")
    causal = True
    takes = {"backbone": Needs("text", kinds=CAUSAL, why="in which each token sees both its sides")}
    preset = {"objective": {"longest": 24}, "backbones": {"text": "gpt2"}, "data": "text/train"}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        model, tokenizer = self.backbone.model, self.backbone.tokenizer
        check_attention(model, f"backbones.{config.backbone}")
        folder, embedding = self.backbone.folder, self.backbone.token_embedding
        stored = {} if folder is None else stored_head(folder, model.config)
        self.head = next_token_head(embedding, model.config, config.softcap, stored)
        if folder is not None and (lacking := lacking_in(stored, self.head, embedding)):
            self._say_lacking(" and ".join(lacking))
        self.frequencies = TokenFrequencies(self.backbone.vocabulary)
        self._begin, end = frame_of(tokenizer)
        _, eos = special_id(tokenizer, "eos_token_id")
        self._end = end if len(end) or eos is None else np.array([eos])

    def _say_lacking(self, what: str) -> None:
        """Its own head is a part of such a network as any other is. Raises ConfigError where none may be made anew."""
        name, tower = self.config.backbone, self.backbone
        if not tower.partial:
            raise ConfigError(f"backbones.{name}.init_from: value {tower.folder!r}: {what} of the layer behind the "
                              f"network, which predicts tokens, is not in it; allowed: {PARTIAL}")  # fmt: skip
        if tower.begun:  # by this process
            tower.begun += f"; made anew since it lacks it: {what} of the layer behind it, which predicts tokens"

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        document = decode.running_text(sample)
        window = random_window(document, rng, self.config.longest)
        ids = self.backbone.tokenizer(
            window, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]  # fmt: skip
        ends = document.rstrip().endswith(window.rstrip())
        end = self._end if ends else self._end[:0]
        pieces = list(following_pieces(np.array(ids, dtype=np.int64), self._begin, end, self.backbone.length))
        if not ends and len(pieces) > 1 and len(pieces[-1][0]) < self.backbone.length:
            pieces.pop()  # drawn at random, the window may as well end here: its rows are full
        nothing = [(self._begin[:0], self._begin[:0])]
        shown, asked = (np.concatenate(parts) for parts in zip(*(pieces or nothing), strict=True))
        sizes = np.array([len(piece) for piece, _ in pieces], dtype=np.int64)
        return {"input_ids": Ragged(shown), "labels": Ragged(asked), "sizes": Ragged(sizes)}

    def assemble(self, by_source: dict[str, Any]) -> dict[str, Any]:
        """Packs the pieces, and adds how many tokens are labelled, as the host knows it."""
        batch: dict[str, Any] = super().assemble(by_source)
        useful = [piece for piece in labelled_pieces(batch) if (piece["labels"] != IGNORE).any()]
        empty = sum(not (labels != IGNORE).any() for labels in batch["labels"]) / len(batch["labels"])
        rows = packed_rows(useful, self.backbone.length, self.backbone.tokenizer.pad_token_id or 0)
        shares = {"padding": (rows.pop("segments") == 0).float().mean(), "empty": torch.tensor(float(empty))}
        return rows | shares | {"labelled": int((rows["labels"] != IGNORE).sum())}

    def units(self, batch: dict[str, Any]) -> dict[str, int]:
        return {"": batch["labelled"]}

    def exports(self) -> dict[str, Head | Network]:
        """What is not the backbone's token embedding."""
        tied = self.head.weight is self.backbone.token_embedding
        tensors: dict[str, Tensor] = {name: value for name, value in self.head.named_parameters()
                                      if not (tied and name == "weight")}  # fmt: skip
        settings = {} if self.config.softcap is None else {"softcap": self.config.softcap}
        return {"causal_lm": Head("causal", {"text": self.config.backbone}, tensors, settings)}

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        labels, packing = batch["labels"].flatten(), Packing(batch["groups"], batch["found"])
        hidden = packed_tokens(self.backbone.model, batch["input_ids"], batch["positions"], packing)
        total, said = self.head(hidden.flatten(0, 1), labels, self.config.z_loss)
        blind, everywhere = self.frequencies(labels)
        loss, blind = mean_of_step(batch, total.float(), blind, everywhere)
        sums = {"accuracy": said.correct.sum()}
        if self.config.z_loss:
            sums["z"] = self.config.z_loss * said.logsumexp.square().sum()
        stats = {name: distributed.global_mean(value, everywhere) for name, value in sums.items()}
        stats |= {name: batch[name] for name in ("padding", "empty")}
        return Losses(loss, blind, blind_name="token frequencies", stats=stats)
