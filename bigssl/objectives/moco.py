"""MoCo: one view finds the key of the other, made by a slow copy of the network, among many (momentum contrast).

    image ─┬─ view 1 ── backbone ── head (── predictor) ── query q ┐
           └─ view 2 ── moving average of both ───────────── key k ┴─ −log( e^{q·k/τ} / (e^{q·k/τ} + Σ_n e^{q·n/τ}) )

With a queue (v1, https://arxiv.org/abs/1911.05722; v2 with a head of two layers and τ = .2, arXiv 2003.04297): the
negatives n are the keys of the last `queue` samples of all ranks. Places of the queue that no key was put into are left
out; at the very first pass, which would have no negatives, the keys of that pass stand in (its own among them).

Without (`queue: 0`; v3, arXiv 2104.02057): the negatives are the other keys of the global batch, each view finds the
key of the other, L = 2τ (L(q1, k2) + L(q2, k1)). v3 for a ViT is `queue: 0`, `predictor: true`, `norm: true`, `layers:
3`, `hidden: 4096`, `dim: 256`, `momentum: .99`, `last_momentum: 1`, `freeze_patches: true`, `augment.preset: moco-v3`;
but the paper's ViT has fixed sine-cosine positions, and begins its patches by Xavier's rule of their pixels, where a
`vit` of transformers learns positions and begins as BERT does.

Keys are normalised by the statistics of the global batch (nets/norm.py), where the paper makes them in other groups of
samples than the queries (shuffling BN): in statistics of a rank's 32 samples a query recognises its key. Those of a
global batch say little, but a queue's keys have those of other batches: with a BatchNorm, let the batch be large. A
network of keys with running statistics, which follow the student's (EMAN, arXiv 2101.08482), was tried in the laptop
recipe: features ended worse than a random network's.

The blind line: everything equal, ln(1 + number of negatives), which grows while the queue fills; 4τ ln N without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.data.kinds.views import AugmentConfig, TwoViews
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.ema import Ema
from bigssl.nets.heads.base import ProjectionHead
from bigssl.nets.heads.queue import Queue
from bigssl.nets.progress import CosineRamp, Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig, attraction
from bigssl.objectives.byol import Projected
from bigssl.objectives.comparing import Comparing
from bigssl.objectives.needs import Needs
from bigssl.objectives.seeing import picture_of
from bigssl_kernels import info_nce, linear_cross_entropy

NOWHERE = -1e4  # a logit whose exponential is 0 beside any other


class Moco(Comparing, Objective):
    """Find the other view's key, made by a slow network, among those of many samples (MoCo v2, v3)."""

    class Config(ObjectiveConfig):
        backbone: str = "image"
        queue: int = Field(
            65536, ge=0, description="keys of earlier samples that are negatives (v2); 0: those of the batch (v3)"
        )
        temperature: float = Field(0.2, gt=0, description="divides the similarities")
        momentum: float = Field(0.999, ge=0, lt=1, description="of the network of the keys; of 1 it would never move")
        last_momentum: float | None = Field(
            None, ge=0, le=1, description="at the end of the run, by a cosine; default: as at the start (v3: 1)"
        )
        layers: int = Field(2, ge=1, description="of the projection head; 2, v3 with a vit: 3")
        norm: bool = Field(False, description="BatchNorm in the heads (v3)")
        predictor: bool = Field(False, description="a head of two layers more, for queries alone (v3)")
        hidden: int = Field(2048, ge=1, description="hidden size of the heads; v3: 4096")
        dim: int = Field(128, ge=1, description="size of queries and keys; v3: 256")
        freeze_patches: bool = Field(False, description="a vit's projection of patches stays as it begins (v3)")
        augment: AugmentConfig = AugmentConfig()

        @model_validator(mode="after")
        def _hidden_layers_are_there(self) -> Moco.Config:
            if self.layers == 1 and not self.predictor:
                self.refuse_idle("with layers 1 and no predictor", "hidden")
            return self

    takes = {"backbone": Needs("image")}
    starts = {"queue": 256, "hidden": 512, "momentum": 0.99}
    least = 2  # without a queue, one sample is compared with itself
    remembering = "earlier keys of a sample are among its own negatives"
    adjustable = ("temperature", "momentum", "last_momentum", "augment")
    preset = {
        "objective": {"queue": 32, "hidden": 16, "dim": 8, "momentum": 0.9},
        "backbones": {"image": "vit"},
        "overfits": False,  # of one batch again and again, earlier keys of a sample are among its negatives
    }

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        backbone = self.backbone_of(towers, "backbone")
        if config.freeze_patches:
            _freeze_patches(backbone, f"backbones.{config.backbone}")
        head = ProjectionHead(
            backbone.dim, config.hidden, config.dim, layers=config.layers, norm=config.norm, last_norm=config.norm
        )
        self.network = Projected(backbone, head)
        self.predictor: nn.Module = nn.Identity()
        if config.predictor:
            self.predictor = ProjectionHead(
                config.dim, config.hidden, config.dim, norm=config.norm, last_norm=config.norm
            )
        last = config.momentum if config.last_momentum is None else config.last_momentum
        self.slow = Ema(self.network, CosineRamp(config.momentum, last))
        self.scheduled = last != config.momentum
        self.queue = Queue(config.queue, config.dim) if config.queue else None
        self.most = config.queue or None
        self.views = TwoViews(config.augment, backbone.size, "moco-v2")

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        return self.views.prepare(picture_of(sample, self.network.tower), rng)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Unit vectors [B, 1, dim], queries of the first views and keys of the second; of both without a queue."""
        views = self.views.of(batch)
        asking, answering = ([views[0]], [views[1]]) if self.queue is not None else (views, views)
        return {"queries": self._queries(torch.cat([*asking]), len(asking)),
                "keys": self._keys(torch.cat([*answering]), len(answering))}  # fmt: skip

    def _queries(self, pixels: Tensor, views: int) -> Tensor:
        return _unit(self.predictor(self.network(pixels)), views)

    @torch.no_grad()
    def _keys(self, pixels: Tensor, views: int) -> Tensor:
        return _unit(self.slow.module(pixels), views)

    def compare(self, embeddings: Mapping[str, Tensor], at: Progress) -> Losses:
        queries, keys = embeddings["queries"], embeddings["keys"].detach()
        spread = {"queries": distributed.spread(queries[:, 0])}
        if self.queue is None:
            loss = self._contrast(queries[:, 0], keys[:, 1]) + self._contrast(queries[:, 1], keys[:, 0])
            weight = 2 * self.config.temperature
            blind = 2 * weight * math.log(len(queries) * distributed.world())
            views = {"queries": queries.detach().transpose(0, 1)}
            return Losses(weight * loss, blind, unit="nats × 2τ", spread=spread, views=views)
        query, key = queries[:, 0], keys[:, 0]
        negatives, valid = self._negatives(self.queue, key)
        loss = self._against(query, key, negatives, valid)
        self.queue.push(key)
        views = {"queries and keys": torch.stack([query.detach(), key])}
        return Losses(loss, (1 + valid.sum()).float().log(), spread=spread, views=views)

    def _contrast(self, query: Tensor, key: Tensor) -> Tensor:
        """[] of unit rows [B, dim]: each query finds its key among those of all ranks."""
        everyone = distributed.gather_rows(key)
        own = torch.arange(len(key), device=key.device) + distributed.rank() * len(key)
        return linear_cross_entropy(query / self.config.temperature, everyone, own)

    @staticmethod
    def _negatives(queue: Queue, key: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B · ranks + K, dim], bool [...]: keys, and which of them count; no number leaves the device."""
        everyone = distributed.gather_rows(key)
        stand_in = (queue.pushed == 0).expand(len(everyone))
        return torch.cat([everyone, queue.entries]), torch.cat([stand_in, queue.filled])

    def _against(self, query: Tensor, key: Tensor, negatives: Tensor, valid: Tensor) -> Tensor:
        """[] InfoNCE of unit rows. What does not count is given a logit of no weight by one coordinate more, which is 1
        in queries, so that the kernel needs no mask."""
        off = torch.where(valid, 0.0, NOWHERE * self.config.temperature)
        asking, own = F.pad(query, (0, 1), value=1.0), F.pad(key, (0, 1))
        rest = torch.cat([negatives, off[:, None]], 1)
        return info_nce(asking, own, rest, self.config.temperature, normalize=False)

    def teachers(self) -> dict[str, Ema]:
        return {"slow": self.slow}

    def guards(self) -> dict[str, Callable[[], None]]:
        def without() -> None:
            setattr(self, "_contrast", attraction)  # noqa: B010 - a method
            setattr(self, "_against", lambda query, key, *_: attraction(query, key))  # noqa: B010

        return {"negatives": without}

    def exports(self) -> dict[str, Head | Network]:
        model = self.slow.module.get_submodule("tower.model")
        assert isinstance(model, PreTrainedModel)
        return {f"{self.config.backbone}_teacher": Network(self.config.backbone, model)}


def _unit(rows: Tensor, views: int) -> Tensor:
    """[V · B, dim], view by view -> unit vectors float32 [B, V, dim]."""
    return torch.stack(F.normalize(rows.float(), dim=1).chunk(views), 1)


def _freeze_patches(tower: Tower, where: str) -> None:
    try:  # networks that embed patches anew at each stage have as many elsewhere
        patches = tower.model.get_submodule("embeddings.patch_embeddings")
    except AttributeError:
        kind = tower.model.config.model_type
        raise ConfigError(f"objective.freeze_patches: value true, but {where} (a {kind}) has no one projection of "
                          "patches; allowed: false, or a backbone such as vit") from None  # fmt: skip
    patches.requires_grad_(False)
