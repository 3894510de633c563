"""SwAV: each crop of a picture predicts how another crop of it is shared out among prototypes
(https://arxiv.org/abs/2006.09882).

    picture ─┬─ 2 large crops ─┬─ backbone ── head ── unit z ── cosines with K prototypes ─┬─ Sinkhorn ── codes q1, q2
             └─ n small crops ─┘                                                           └─ / .1 ── s1, ..., s2+n

    loss = mean over t of {1, 2} and s ≠ t of  −Σ_k q_t ln softmax(s_s)

Codes share the global batch out: each prototype gets as much as any other, which keeps one from taking all. With a
queue, the last embeddings of all ranks take part (for batches with fewer samples than prototypes). Prototypes are kept
at length 1 by a constraint, and have the gradient 0 during the first share `freeze` of the run. All crops are one batch
of the head's BatchNorm, those of a side one of the backbone's.

The blind line is that of `Frequencies`: the mean of other samples' codes, or ln K, where this is better. Codes have
equal shares only nearly: the last thing that Sinkhorn-Knopp does is to make each sample's share one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigssl import distributed
from bigssl.data.kinds.multicrop import MultiCropConfig
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.constraint import Constraint
from bigssl.nets.heads.base import ProjectionHead
from bigssl.nets.heads.prototypes import BLIND, Frequencies, Prototypes, sinkhorn, spread_of, swapped, unit_rows
from bigssl.nets.heads.queue import Queue
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses, Objective, ObjectiveConfig
from bigssl.objectives.needs import Needs
from bigssl.objectives.seeing import crops_for, picture_of


class Swav(Objective):
    """Predict from one crop how another is shared out among prototypes (SwAV)."""

    class Config(ObjectiveConfig):
        backbone: str = "image"
        prototypes: int = Field(3000, ge=2)
        hidden: int = Field(2048, ge=1, description="hidden size of the projection head")
        dim: int = Field(128, ge=2, description="size of the embedding that is compared with prototypes")
        temperature: float = Field(0.1, gt=0)
        epsilon: float = Field(0.05, gt=0, description="of Sinkhorn-Knopp: the smaller, the sharper the codes")
        iterations: int = Field(3, ge=1, description="of Sinkhorn-Knopp")
        queue: int = Field(0, ge=0, description="embeddings of each large crop that take part in the codes; 0: none")
        queue_from: float = Field(0.15, ge=0, lt=1, description="share of the run after which the queue is filled")
        freeze: float = Field(0.01, ge=0, lt=1, description="share of the run in which prototypes stay as they are")
        crops: MultiCropConfig = MultiCropConfig()

        @model_validator(mode="after")
        def _queue_is_used(self) -> Swav.Config:
            if self.queue == 0:
                self.refuse_idle("with queue 0", "queue_from")
            return self

    takes = {"backbone": Needs("image")}
    starts = {"prototypes": 256, "hidden": 512, "freeze": 0.05}
    least = 2  # of one sample, equal shares say nothing
    symmetric = scheduled = True
    adjustable = ("temperature", "epsilon", "iterations", "queue_from", "freeze", "crops")
    preset = {
        "objective": {
            "prototypes": 8, "hidden": 16, "dim": 8, "temperature": 0.2, "epsilon": 0.03, "queue": 16,
            "queue_from": 0.05, "crops": {"small": 1},
        },
        "backbones": {"image": "resnet"},
    }  # fmt: skip

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.crops = crops_for(self.backbone, config.crops, "swav")
        self.head = ProjectionHead(self.backbone.dim, config.hidden, config.dim)
        self.prototypes = Prototypes(config.dim, config.prototypes)
        self.queues = nn.ModuleList([Queue(config.queue, config.dim) for _ in range(2 if config.queue else 0)])
        self.frequencies = Frequencies(config.prototypes)
        self.most = config.queue or None  # samples that a pass over all ranks may hold

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        return self.crops.prepare(picture_of(sample, self.backbone), rng)

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        sides, queues = self.crops.of(batch), self._filling(at)
        count, frozen = len(sides[0]) // 2, at.step < self.config.freeze * at.steps
        features = torch.cat([self.backbone.features({"image": each}) for each in sides])
        unit = F.normalize(self.head(features).float(), dim=1)
        queued = [queue.entries[distributed.rank() :: distributed.world()] for queue in queues]  # a share for each rank
        cosines = self.prototypes(torch.cat([unit, *queued]), frozen)
        views, *others = cosines.split([len(unit), *map(len, queued)])
        views = views.unflatten(0, (-1, count))  # [V, B, K]
        full = [queue.pushed >= self.config.queue for queue in queues]
        beside = [(rows.detach(), each) for rows, each in zip(others, full, strict=True)]
        codes = torch.stack([self._codes(views[n].detach(), beside[n : n + 1]) for n in range(2)])
        loss = swapped(codes, views / self.config.temperature)
        large = unit[: 2 * count].detach().unflatten(0, (2, count))
        for queue, each in zip(queues, large, strict=False):
            queue.push(each)
        each = codes.new_full((count,), 1 / (2 * count * distributed.world()))
        return Losses(
            loss, self.frequencies(codes.sum(0), each), blind_name=BLIND, stats=self._stats(frozen),
            spread=self._spread(views[0].detach(), codes[0]), views={"projections": large},
        )  # fmt: skip

    def _filling(self, at: Progress) -> list[Queue]:
        """The queue of each large crop; none before its time."""
        begun = at.step >= self.config.queue_from * at.steps
        return [queue for queue in self.queues if isinstance(queue, Queue)] if begun else []

    def _codes(self, cosines: Tensor, beside: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Cosines [B, K] of a large crop -> codes [B, K]. beside: of its queue, cosines [n, K] of this rank's share and
        whether they count, bool []: not before it is full."""
        rows = torch.cat([cosines, *(others for others, _ in beside)])
        counted = torch.cat([cosines.new_ones(len(cosines)), *(full.expand(len(others)) for others, full in beside)])
        return sinkhorn(rows, self.config.epsilon, self.config.iterations, counted)[: len(cosines)]

    def _spread(self, cosines: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Prototypes by predictions: codes have equal shares whatever the embeddings are."""
        predicted = spread_of((cosines / self.config.temperature).softmax(-1))
        return {"prototypes": predicted["prototypes"], "assignments": spread_of(codes)["assignments"]}

    def _stats(self, frozen: bool) -> dict[str, Tensor]:
        device = self.prototypes.weight.device
        stats = {"prototypes_frozen": torch.tensor(float(frozen), device=device)}
        for queue in self.queues[:1]:
            assert isinstance(queue, Queue)
            stats["queued"] = queue.filled.sum().float()
        return stats

    def constraints(self) -> list[Constraint]:
        return [Constraint(list(self.prototypes.parameters()), unit_rows)]

    def guards(self) -> dict[str, Callable[[], None]]:
        def alone(cosines: Tensor, beside: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
            return (cosines / self.config.epsilon).softmax(-1)

        return {"equal shares": lambda: setattr(self, "_codes", alone)}
