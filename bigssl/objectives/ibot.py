"""iBOT: DINO on class tokens, and the same for patches that the student does not see
(Zhou et al. 2022, arXiv 2111.07832).

    picture ─┬─ 2 large crops ─┬─ teacher ── class tokens, patches ── centring or Sinkhorn ── p, u
             │                 └─ student, blocks of patches of one of them hidden ── class tokens s, patches h
             └─ n small crops ─── student ─────────────────────────────────────────── class tokens s

    loss = DINO(p, s) + weight · mean over large crops of the mean over its hidden patches of  −Σ_k u_k ln softmax(h)_k

Which of the two crops has hidden patches, how many (a share from `hidden_from` to `hidden_to`) and which follow from
the sample; the paper hides some of each crop with probability 1/2. In their place stands a token that is learned, which
the exported network does not need. The head is one for class tokens and patches, centres are two; that of patches is of
hidden ones only, where the official code takes all of the teacher's.

The blind line of the patches knows each patch's place: the mean of other patches' targets there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.data.kinds.blocks import blocks
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.heads.prototypes import BLIND, Assigned, Frequencies, PrototypeHead, centring, spread_of
from bigssl.nets.patches import MASKABLE, can_mask, class_and_patches, patch_grid
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Losses
from bigssl.objectives.dino import Dino
from bigssl.objectives.needs import Needs


class OverPatches(nn.Module):
    """A backbone and a head over class tokens of crops of several sides, and over some patches of the large ones."""

    def __init__(self, tower: Tower, head: PrototypeHead) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(
        self, sides: Sequence[Tensor], rows: Tensor, frozen: bool = False, hidden: Tensor | None = None,
        token: Tensor | None = None,
    ) -> tuple[Assigned, Assigned]:  # fmt: skip
        """Of all crops' class tokens, and of patches.

        Args:
            sides: uint8 [R, C, side, side] each, large crops first.
            rows: int64 [M], which of the R · N patches of large crops.
            hidden, token: see `class_and_patches`, of large crops.
        """
        large, patches = class_and_patches(self.tower, sides[0], hidden, token)
        classes = torch.cat([large, *(class_and_patches(self.tower, each)[0] for each in sides[1:])])
        found: Assigned = self.head(torch.cat([classes, patches.flatten(0, 1)[rows]]), frozen)
        count = len(classes)
        return Assigned(*(each[:count] for each in found)), Assigned(*(each[count:] for each in found))


class Ibot(Dino):
    """Predict a slow copy's prototypes of class tokens and of hidden patches (iBOT)."""

    class Config(Dino.Config):
        prototypes: int = Field(8192, ge=2)
        hidden_from: float = Field(0.1, gt=0, lt=1, description="share of a crop's patches that is hidden at least")
        hidden_to: float = Field(0.5, gt=0, lt=1, description="share of a crop's patches that is hidden at most")
        patch_weight: float = Field(1.0, gt=0, description="of the loss of patches; that of class tokens has 1")

        @model_validator(mode="after")
        def _shares_in_order(self) -> Ibot.Config:
            if self.hidden_from > self.hidden_to:
                raise ValueError(f"hidden_from {self.hidden_from} is above hidden_to {self.hidden_to}")
            return self

    takes = {"backbone": Needs("image", MASKABLE, "which has no token in the place of a patch")}
    symmetric = False  # the two crops have masks of their own
    adjustable = (*Dino.adjustable, "hidden_from", "hidden_to", "patch_weight")
    preset = Dino.preset | {"objective": Dino.preset["objective"] | {"momentum": 0.95}}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__(config, towers)
        self.grid = patch_grid(self.backbone)
        patches = self.grid**2
        if int(patches * config.hidden_to) < 1:
            raise ConfigError(
                f"objective.hidden_to: value {config.hidden_to} hides none of the {patches} whole patches of backbone "
                f"{config.backbone!r} (size {self.backbone.size}, patch {self.backbone.model.config.patch_size}); "
                f"allowed: a size that is a multiple of the patch, and a share of one patch at least"
            )
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.backbone.dim), std=0.02))
        self.assign_patches = centring(config.centring, config.prototypes, config.centre_momentum)
        self.patch_frequencies = Frequencies(config.prototypes, places=patches)

    def _network(self, head: PrototypeHead) -> nn.Module:
        can_mask(self.backbone.model)
        return OverPatches(self.backbone, head)

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        """Beside the crops, hidden: bool [2, N], patches of the large crops, of one of them only."""
        share = rng.uniform(self.config.hidden_from, self.config.hidden_to)
        hidden = np.zeros((2, self.grid**2), bool)
        count = _count(share, self.grid**2)
        hidden[int(rng.integers(2))] = blocks(self.grid, self.grid, count, rng).flatten()
        return super().prepare(sample, rng, more) | {"hidden": hidden}

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        sides = self.crops.of(batch)
        hidden = batch["hidden"].transpose(0, 1).flatten(0, 1)  # [2B, N]
        most = len(batch["hidden"]) * _count(self.config.hidden_to, self.grid**2)
        found = torch.nonzero_static(hidden.flatten(), size=most, fill_value=-1).squeeze(1)  # the host need not wait
        rows, counted = found.clamp(min=0), found >= 0
        students, hidden_patches = self.student(sides, rows, self._frozen(at), hidden, self.mask_token)
        with torch.no_grad():
            teachers, targets = self.teacher.module(sides[:1], rows)
        classes = self._distilled(students, teachers.cosines, at)
        patches = self._patches(hidden_patches, targets.cosines, hidden, (rows, counted), at)
        weight = self.config.patch_weight
        return Losses(
            classes.total + weight * patches.total, classes.blind + weight * patches.blind, blind_name=BLIND,
            parts={"classes": classes.detached()._replace(views={}), "patches": patches.detached()},
            views=classes.views,
        )  # fmt: skip

    def _patches(
        self, student: Assigned, teacher: Tensor, hidden: Tensor, places: tuple[Tensor, Tensor], at: Progress
    ) -> Losses:
        """The loss of hidden patches, rows [M] of the student and cosines [M, K] of the teacher.

        hidden: bool [2B, N]. places: of each row which of all patches it is, and whether it is one.
        """
        rows, counted = places
        targets = self._targets(self.assign_patches, teacher, self.sharpness(at), counted)
        logits = student.cosines / self.config.temperature
        each = 1 / hidden.sum(1, keepdim=True).clamp(min=1) / len(hidden)  # a mean over patches, one over crops
        weights = each.expand(hidden.shape).flatten()[rows] * counted
        loss = (weights * (logits.logsumexp(-1) - (targets * logits).sum(-1))).sum()
        blind = self.patch_frequencies(targets, weights / distributed.world(), rows % hidden.shape[1])
        return Losses(loss, blind, blind_name=f"{BLIND} at the same place", spread=spread_of(targets))


def _count(share: float, patches: int) -> int:
    """Patches that a share of them is, one at least."""
    return max(1, int(share * patches))
