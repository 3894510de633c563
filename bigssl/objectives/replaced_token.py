"""Replaced-token detection: which tokens did a small network put there? (ELECTRA, https://arxiv.org/abs/2003.10555)

    text ── 15 % hidden ── generator ── a token drawn for each hidden place ─┐
      └──────────────── cross-entropy of what was hidden ──┘                 │
    text, with what was drawn in place ── backbone ── of each token: was it replaced?
                                                     loss = cross-entropy + 50 · binary cross-entropy over all tokens

With `correct`, the backbone also predicts what stood at the hidden places, out of the text with what was drawn there:
it sees no mask, and is asked for words as the generator is (ELECTRA's "replace MLM" beside its detection; COCO-LM's
corrective language modelling, https://arxiv.org/abs/2102.08473, without its copy probability). Its head stays behind.

No gradient passes the drawing, so that the generator learns as in masked language modelling alone. A token that is
drawn right counts as not replaced. `generator` is a backbone of its own, a quarter to a half as wide; with token
embeddings of the same shape the two share them, as in the paper (`share_embeddings`). What is worth having afterwards
is the other one, `backbone`. A text with nothing to hide adds nothing to the first loss, and is counted in
stats/unmaskable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bigssl.config.errors import ConfigError
from bigssl.data.kinds import decode
from bigssl.data.kinds import text as textual
from bigssl.data.kinds.masking import IGNORE, Unit, select, share_at
from bigssl.data.loading.loader import SEEDS
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.chance.seeds import another
from bigssl.nets.heads.base import MaskedLanguageHead, masked_settings
from bigssl.nets.heads.frequencies import TokenFrequencies
from bigssl.nets.heads.replacing import DiscriminatorHead, GeneratorHead
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig
from bigssl.objectives.counting import Counting, mean_of_step
from bigssl.objectives.mlm import RATIO_END, TOKENS
from bigssl.objectives.needs import Needs


class ReplacedToken(Counting, Objective):
    """Tell tokens that a small network put there from those of the text (ELECTRA)."""

    class Config(ObjectiveConfig):
        backbone: str = Field("text", description="what tells them apart")
        generator: str = Field("generator", description="backbone that puts tokens there")
        ratio: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are hidden")
        ratio_end: float | None = Field(None, gt=0, lt=1, description=RATIO_END)
        masking: Unit = Field("token", description="what is hidden as a whole: token, word (see docs/data.md) or span")
        detection: float = Field(50.0, gt=0, description="weight of the loss over all tokens")
        correct: float = Field(0.0, ge=0, description="weight of predicting what stood at hidden places; COCO-LM: 1")
        share_embeddings: bool = Field(True, description="both have one token embedding")

    adjustable = ("ratio", "ratio_end", "masking", "detection")
    seeded = True
    takes = {"backbone": Needs("text", sees="both", tokens=TOKENS), "generator": Needs("text", sees="both")}
    preset = {
        "objective": {"ratio": 0.3, "detection": 5.0, "correct": 0.2},
        "backbones": {"text": "bert", "generator": "bert"},
    }

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.generator = self.backbone_of(towers, "generator")
        self._check(config)
        if config.share_embeddings:
            self.generator.model.set_input_embeddings(self.backbone.model.get_input_embeddings())
        self.head = GeneratorHead(self.generator.token_embedding, *masked_settings(self.generator.model.config))
        self.judge = DiscriminatorHead(self.backbone.dim)
        embedding, settings = self.backbone.token_embedding, masked_settings(self.backbone.model.config)
        self.corrector = MaskedLanguageHead(embedding, *settings) if config.correct else None
        self.frequencies = TokenFrequencies(self.generator.vocabulary)
        self.verdicts = TokenFrequencies(2)

    def _check(self, config: Config) -> None:
        mine, other = self.backbone, self.generator
        if config.generator == config.backbone:
            raise ConfigError(f"objective.generator: backbone {config.generator!r} is objective.backbone, too; "
                              "allowed: another one, which is a quarter to a half as wide")  # fmt: skip
        if mine.tokenizer.get_vocab() != other.tokenizer.get_vocab() or mine.length != other.length:
            raise ConfigError(
                f"objective.generator: backbone {config.generator!r} has another tokenizer or length than "
                f"{config.backbone!r} ({other.length} and {mine.length} tokens); allowed: the same"
            )
        shapes = [list(getattr(each.token_embedding, "ds_shape", each.token_embedding.shape)) for each in (mine, other)]
        if config.share_embeddings and shapes[0] != shapes[1]:
            raise ConfigError(
                f"objective.share_embeddings: value true with token embeddings of {shapes[0]} and {shapes[1]}; "
                "allowed: false, or networks that have an embedding_size (type electra)"
            )

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        tokenizer, length = self.backbone.tokenizer, self.backbone.length
        window = textual.window_for(decode.running_text(sample), rng, length)
        input_ids, attention_mask, words = textual.encode_words(tokenizer, window, length)
        ratio = share_at(self.config.ratio, self.config.ratio_end, sample.done)
        hidden = select(self.config.masking, words, rng, ratio) >= 0
        return {
            "input_ids": input_ids, "attention_mask": attention_mask, "hidden": hidden, "judged": attention_mask > 0,
        }  # fmt: skip

    def assemble(self, by_source: dict[str, Any]) -> dict[str, Any]:
        """Adds how many tokens are hidden, and how many there are."""
        batch: dict[str, Any] = super().assemble(by_source)
        return batch | {"asked": int(batch["hidden"].sum()), "tokens": int(batch["judged"].sum())}

    def units(self, batch: dict[str, Any]) -> dict[str, int]:
        return {"generator": batch["asked"], "detection": batch["tokens"]}

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        ids, mask, hidden = batch["input_ids"], batch["attention_mask"], batch["hidden"]
        asked, labels = ids.masked_fill(hidden, self.backbone.tokenizer.mask_token_id), ids.where(hidden, IGNORE)
        places = another(batch[SEEDS][:, None], torch.arange(ids.shape[1], device=ids.device))
        guessed = self.generator.hidden({"input_ids": asked, "attention_mask": mask})
        total, drawn = self.head(guessed, labels, places, batch["asked"])
        known = self.frequencies(labels)
        parts = {"generator": (1.0, _of_words(batch, total, known))}
        states = self.backbone.hidden({"input_ids": torch.where(drawn != IGNORE, drawn, ids), "attention_mask": mask})
        judged = self._detection(batch, self.judge(states), (drawn != labels).long())
        parts["detection"] = self.config.detection, judged
        if self.corrector is not None:
            corrected = self.corrector(states, labels, batch["asked"])
            parts["correction"] = self.config.correct, _of_words(batch, corrected, known)
        total = torch.stack([weight * part.total for weight, part in parts.values()]).sum()
        return Losses(
            total, sum(weight * part.blind for weight, part in parts.values()), "weighted nats",
            "its parts' blind predictors", {name: part.detached() for name, (_, part) in parts.items()},
            {"padding": (mask == 0).float().mean(), "unmaskable": (~hidden).all(1).float().mean()},
        )  # fmt: skip

    def _detection(self, batch: dict[str, Any], logits: Tensor, replaced: Tensor) -> Losses:
        """The loss over all tokens."""
        judged = batch["judged"]
        each = F.binary_cross_entropy_with_logits(logits, replaced.float(), reduction="none")
        blind, everywhere = self.verdicts(replaced.masked_fill(~judged, IGNORE))
        loss, blind = mean_of_step(batch, (each * judged).sum(), blind, everywhere, "detection")
        return Losses(loss, blind, blind_name="the share that was replaced so far")

    def exports(self) -> dict[str, Head | Network]:
        """The generator's head without its decoder, which is the token embedding; and the judge. That of corrections
        belongs to texts that no one else makes."""
        tensors: dict[str, Tensor] = {name: value for name, value in self.head.named_parameters() if name != "weight"}
        judge = dict[str, Tensor](self.judge.named_parameters())
        return {
            "mlm": Head("mlm", {"text": self.config.generator}, tensors),
            "replaced_token": Head("replaced_token", {"text": self.config.backbone}, judge),
        }


def _of_words(batch: Mapping[str, Any], total: Tensor, known: tuple[Tensor, Tensor]) -> Losses:
    """The loss of predicting the hidden tokens, of their sum. known: their blind value, and how many there are."""
    loss, blind = mean_of_step(batch, total.float(), *known, "generator")
    return Losses(loss, blind, blind_name="token frequencies")
