"""SimCSE: two views of a text find each other among those of all others (https://arxiv.org/abs/2104.08821).

    text ─┬─ view ── backbone, dropped ── head ── z1 ┐
          └─ view ── backbone, dropped ── head ── z2 ┴─ each z1 picks its z2 among N, and the reverse

In the paper both views are the text itself and only dropout tells them apart; `keep` and `leave_out` make views of a
part of it, as later work does. Features are means over tokens where the paper takes the state of [CLS], since that is
what an export gives; the head, a dense layer with tanh, is the paper's, and stays behind. The paper's loss picks in one
direction; here both, as CLIP's does. Texts without a token are bad samples (`data.on_error`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds import text as textual
from bigssl.data.kinds.words import view_of
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective, ObjectiveConfig, attraction
from bigssl.objectives.comparing import Comparing
from bigssl.objectives.needs import Needs
from bigssl_kernels import clip_loss


class Simcse(Comparing, Objective):
    """Contrast two views of each text (SimCSE)."""

    class Config(ObjectiveConfig):
        backbone: str = "text"
        temperature: float = Field(0.05, gt=0, description="divides the similarities")
        keep: float = Field(1.0, gt=0, le=1, description="smallest share of the words that a view has, in a row")
        leave_out: float = Field(0.0, ge=0, lt=1, description="share of a view's words that are left out")
        head: bool = Field(True, description="a dense layer with tanh on the features, in training only")

    takes = {"backbone": Needs("text", sees="both")}
    starts = {"keep": 0.5, "leave_out": 0.1}
    least = 2  # one text is compared with itself
    adjustable = ("temperature", "keep", "leave_out")
    preset = {"objective": {"keep": 0.5, "temperature": 0.2}, "backbones": {"text": "bert"}}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        dim, self._frame = self.backbone.dim, len(self.backbone.tokenizer("")["input_ids"])
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.Tanh()) if config.head else nn.Identity()
        self._check_views_differ()

    def _check_views_differ(self) -> None:
        rates = {name: rate for name, rate in self.backbone.model.config.to_dict().items() if "drop" in name}
        if self.config.keep == 1 and not self.config.leave_out and not any(rates.values()):
            names = ", ".join(sorted(rates)) or "none that could"
            raise ConfigError(
                f"objective.keep: value 1.0 with leave_out 0 and a backbone {self.config.backbone!r} without dropout "
                f"({names}): both views of a text would be the same; allowed: keep < 1, leave_out > 0, or dropout"
            )

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        tokenizer, length = self.backbone.tokenizer, self.backbone.length
        window = textual.window_for(decode.running_text(sample), rng, length)
        views = {}
        for name in ("view1", "view2"):
            view = view_of(window, rng, keep=self.config.keep, leave_out=self.config.leave_out)
            input_ids, attention_mask = textual.encode(tokenizer, view, length)
            if attention_mask.sum() <= self._frame:  # two of these would be each other's negatives
                raise DataError("an empty document, without a token that two views could share; leave such documents "
                                "out (data.on_error: skip does)")  # fmt: skip
            views[name] = {"input_ids": input_ids, "attention_mask": attention_mask}
        return views

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        both = {key: torch.cat([batch["view1"][key], batch["view2"][key]]) for key in batch["view1"]}
        z1, z2 = self.head(self.backbone.features(both)).float().chunk(2)
        return {"view1": z1, "view2": z2}

    def compare(self, embeddings: Mapping[str, Tensor], at: Progress) -> Losses:
        z1, z2 = embeddings["view1"], embeddings["view2"]
        loss = self._contrast(z1, z2)
        blind = math.log(len(z1) * distributed.world())  # every similarity equal
        spread, views = {"texts": distributed.spread(z1)}, {"texts": torch.stack([z1, z2]).detach()}
        return Losses(loss, blind, spread=spread, views=views)

    def _contrast(self, z1: Tensor, z2: Tensor) -> Tensor:
        return clip_loss(z1, z2, 1 / self.config.temperature, group=distributed.group())

    def guards(self) -> dict[str, Callable[[], None]]:
        return {"negatives": lambda: setattr(self, "_contrast", attraction)}
