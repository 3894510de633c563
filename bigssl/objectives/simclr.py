"""SimCLR: two augmented views of an image find each other among all others (https://arxiv.org/abs/2002.05709).

    image ─┬─ augment ── backbone ── head ── z1 ┐
           └─ augment ── backbone ── head ── z2 ┴─ NT-Xent over the 2N views of the global batch

SimCLR v2 (https://arxiv.org/abs/2006.10029) has three layers in the head (`layers`). Its fine-tuning from the first of
them is not offered: the export is the backbone, without its head. `hidden` is 512, the width of a ResNet-18; the paper
has that of its network, 2,048 for a ResNet-50.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bigssl import distributed
from bigssl.data.kinds.views import TwoViews
from bigssl.nets.heads.base import ProjectionHead
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective, attraction
from bigssl.objectives.comparing import Comparing
from bigssl.objectives.scale import LEAST_TEMPERATURE, capped_scale, log_scale_of
from bigssl.objectives.viewed import OnViews, ViewedConfig
from bigssl_kernels import nt_xent


class Simclr(Comparing, OnViews, Objective):
    """Contrast two augmented views of each image (SimCLR)."""

    class Config(ViewedConfig):
        temperature: float = Field(0.1, gt=0, description="divides the similarities")
        learn_temperature: bool = Field(
            False, description="`temperature` is where it begins, and it stays above .01 (as in CLIP)"
        )
        layers: int = Field(2, ge=1, description="of the projection head; 2: SimCLR, 3: SimCLR v2")
        norm: bool = Field(True, description="BatchNorm in the head; without, batch.cached is exact (with a vit)")
        hidden: int = Field(512, ge=1, description="hidden size of the projection head")
        dim: int = Field(128, ge=1, description="size of the contrasted embedding")

        @model_validator(mode="after")
        def _begins_where_it_may_be(self) -> Simclr.Config:
            if self.learn_temperature and self.temperature < LEAST_TEMPERATURE:
                raise ValueError(
                    f"temperature {self.temperature} is no beginning with learn_temperature true, which keeps it above "
                    f"{LEAST_TEMPERATURE}; allowed: {LEAST_TEMPERATURE} or more"
                )
            return self

        @model_validator(mode="after")
        def _hidden_layers_are_there(self) -> Simclr.Config:
            if self.layers == 1:
                self.refuse_idle("with layers 1", "hidden", "norm")
            return self

    starts = {"temperature": 0.2, "augment": {"min_scale": 0.3}}
    adjustable = ("temperature", "augment")
    preset = {"objective": {"hidden": 16, "dim": 8}, "backbones": {"image": "resnet"}}

    @classmethod
    def adjustable_in(cls, config: Config) -> tuple[str, ...]:
        """The checkpoint knows what a learned temperature has become."""
        return tuple(field for field in cls.adjustable if field != "temperature" or not config.learn_temperature)

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.head = ProjectionHead(
            self.backbone.dim, config.hidden, config.dim, layers=config.layers, norm=config.norm
        )
        self.log_scale = log_scale_of(config.temperature) if config.learn_temperature else None
        self.views = TwoViews(config.augment, self.backbone.size)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        z1, z2 = self.head(self.seen(batch)).float().chunk(2)
        learned = {} if self.log_scale is None else {"scale": capped_scale(self.log_scale)}
        return {"view1": z1, "view2": z2, **learned}

    def compare(self, embeddings: Mapping[str, Tensor], at: Progress) -> Losses:
        z1, z2 = embeddings["view1"], embeddings["view2"]
        learned = embeddings["scale"].reciprocal() if "scale" in embeddings else None
        loss = self._contrast(z1, z2, self.config.temperature if learned is None else learned)
        blind = math.log(max(2 * len(z1) * distributed.world() - 1, 1))  # every similarity equal
        spread, views = {"projections": distributed.spread(z1)}, {"projections": torch.stack([z1, z2]).detach()}
        stats = {} if learned is None else {"temperature": learned.detach()}
        return Losses(loss, blind, stats=stats, spread=spread, views=views)

    def _contrast(self, z1: Tensor, z2: Tensor, temperature: float | Tensor) -> Tensor:
        return nt_xent(z1, z2, temperature, group=distributed.group())

    def guards(self) -> dict[str, Callable[[], None]]:
        return {"negatives": lambda: setattr(self, "_contrast", lambda z1, z2, _: attraction(z1, z2))}
