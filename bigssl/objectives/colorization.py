"""Colour from lightness (Zhang et al. 2016, https://arxiv.org/abs/1603.08511).

    picture ── crop ── Lab ─┬─ L ── backbone ── decoder ─┐
                            └─ ab at a quarter ── bins ──┴─ cross-entropy, rare colours weighing more

The colour of a pixel is shared out among its five nearest bins, Z. The loss is the mean of − v Σ_q Z_q ln Ẑ_q over
pixels, where v = w of the nearest bin, w ∝ 1 / ((1 − λ) p̃ + λ / Q), E[w] = 1. The paper takes p̃ from all of ImageNet;
here it is what was seen so far, on all ranks (uniform at the start): buffers, which a resume finds again. The least
loss is not 0, but the entropy of Z. `regression` has the squared distance in ab in place of bins.

A picture without any colour has nothing to predict: it counts neither in the loss nor in the frequencies, its share is
stats/grey. Data of which all is grey are refused. Blind line: the weighted frequencies of bins so far; of a regression,
the mean colour so far. The network sees L as bytes in each of its three channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.data.kinds.augment import SimClrAugment
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.modality.pixels import COLOURS
from bigssl.nets.progress import Progress
from bigssl.nets.remaking.colorization import GREY_UP_TO, SCALE, ColorizationRemaker, ColourBins, as_bytes
from bigssl.nets.remaking.lab import lab_of
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig
from bigssl.objectives.needs import Needs
from bigssl.objectives.seeing import picture_of


class Colorization(Objective):
    """Predict the colours of a picture from its lightness (colorization)."""

    class Config(ObjectiveConfig):
        backbone: str = "image"
        predict: Literal["bins", "regression"] = Field("bins", description="which bin of ab, or a and b themselves")
        bin: int = Field(10, ge=5, le=50, description="bins: their side in ab")
        uniform: float = Field(
            0.5, gt=0, le=1, description="bins: share of the uniform distribution in that by whose inverse colours "
            "weigh; 1: all weigh the same",
        )  # fmt: skip
        width: int = Field(128, ge=8, multiple_of=8, description="channels of the decoder")
        min_scale: float = Field(0.2, gt=0, le=1, description="smallest share of the picture that a crop keeps")
        flip: bool = Field(True, description="mirror half of the pictures")

        @model_validator(mode="after")
        def _bins_are_used(self) -> Colorization.Config:
            if self.predict == "regression":
                self.refuse_idle("with predict regression", "bin", "uniform")
            return self

    takes = {"backbone": Needs("image")}
    starts = {"width": 64, "min_scale": 0.5}
    adjustable = ("min_scale", "flip")
    cannot_collapse = True  # one picture's colours are not another's
    preset = {"objective": {"width": 32, "min_scale": 1.0}, "backbones": {"image": "resnet"}}
    counts: Tensor
    mass: Tensor

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        if self.backbone.channels != COLOURS:
            raise ConfigError(
                f"objective.backbone: backbone {config.backbone!r} has channels {self.backbone.channels}, so that its "
                f"pictures have no colours to predict; allowed: one with channels {COLOURS}"
            )
        step = config.bin if config.predict == "bins" else None
        self.painter = ColorizationRemaker(dim=self.backbone.dim, size=self.backbone.size, width=config.width, bin=step)
        if self.painter.bins is not None:
            bins = len(self.painter.bins.centres)
            self.register_buffer("counts", torch.zeros(bins, dtype=torch.int64))  # of pixels, by their nearest bin
            self.register_buffer("mass", torch.zeros(bins, dtype=torch.float64))  # Σ v Z
        self.augment = SimClrAugment(
            self.backbone.size, min_scale=config.min_scale, flip=config.flip, jitter=0.0, grey=0.0, blur=0.0
        )

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        """light uint8 [1, size, size], and colour int8 [2, side, side], the mean a and b of each place."""
        lab = lab_of(torch.from_numpy(self.augment(picture_of(sample, self.backbone), rng)))
        colour = F.adaptive_avg_pool2d(lab[1:], self.painter.side).round().to(torch.int8)
        return {"light": as_bytes(lab[:1]).numpy(), "colour": colour.numpy()}

    def unfit(self, prepared: Sequence[dict[str, Any]]) -> str:
        if any(np.abs(each["colour"]).max() > GREY_UP_TO for each in prepared):
            return ""
        return f"all {len(prepared)} pictures that were looked at are grey: there is no colour to predict; allowed: " \
            "pictures in colour, or a task that needs none"

    def forward(self, batch: dict[str, Tensor], at: Progress) -> Losses:
        light, colour = batch["light"], batch["colour"]
        hidden = self.backbone.hidden({"image": light.expand(-1, COLOURS, -1, -1)})
        said = self.painter(hidden)
        coloured = (colour.abs().amax((1, 2, 3)) > GREY_UP_TO).float()  # [B]
        of_bins = self.painter.bins
        total, blind, pixels = self._of_ab(said, colour, coloured) if of_bins is None else (
            self._of_bins(of_bins, said, colour, coloured))  # fmt: skip
        return Losses(
            distributed.global_mean(total, pixels), blind,
            unit="squared distance" if of_bins is None else "nats",
            blind_name="the mean colour so far" if of_bins is None else "frequencies of colours",
            stats={"grey": 1 - coloured.mean()},
            spread={"features": distributed.spread(hidden.mean(1))},
        )  # fmt: skip

    def _of_bins(
        self, bins: ColourBins, logits: Tensor, colour: Tensor, coloured: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of the loss over this rank's pixels that count; the blind line, and how many these are on all ranks."""
        near, shares = bins(colour)  # [B, 5, h, w]
        weight = bins.weights(self.counts, self.config.uniform)[near[:, 0]] * coloured.view(-1, 1, 1)
        surprise = logits.logsumexp(1) - (shares * logits.gather(1, near)).sum(1)  # [B, h, w]
        with torch.no_grad():
            mass, counts = torch.zeros_like(self.mass), torch.zeros_like(self.mass)
            mass.scatter_add_(0, near.flatten(), (shares * weight[:, None]).double().flatten())
            counts.scatter_add_(0, near[:, 0].flatten(), coloured.double().repeat_interleave(weight[0].numel()))
            mass, counts = distributed.all_reduce_sum(torch.stack([mass, counts]))
            expected = (self.mass + 1 / len(mass)) / (self.mass.sum() + 1)
            pixels = counts.sum()
            blind = (-(mass * expected.log()).sum() / pixels.clamp(min=1)).float()
            self._remember(colour, coloured, mass, counts)
        return (weight * surprise).sum(), blind, pixels.float()

    def _remember(self, colour: Tensor, coloured: Tensor, mass: Tensor, counts: Tensor) -> None:
        if self.training:
            self.mass += mass
            self.counts += counts.long()
            self.painter.look(_moments(colour, coloured)[:3])

    def _of_ab(self, said: Tensor, colour: Tensor, coloured: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of a regression; the blind line is the distance to the mean colour of the passes before (grey at
        first): that of this pass would be known in hindsight."""
        distance = (said - colour.float() / SCALE).square().sum(1)  # [B, h, w]
        moments, seen = _moments(colour, coloured), self.painter.seen
        mean, pixels = seen[:2] / seen[2].clamp(min=1), moments[2]
        apart = moments[3] - 2 * (moments[:2] * mean).sum() + pixels * mean.square().sum()
        blind = (apart / pixels.clamp(min=1) / SCALE**2).float()
        if self.training:
            self.painter.look(moments[:3])
        return (distance * coloured.view(-1, 1, 1)).sum(), blind, moments[2].float()

    def exports(self) -> dict[str, Head | Network]:
        painter = self.painter
        head = Head(painter.kind, {"image": self.config.backbone}, painter.learnt(), painter.settings)
        return {painter.kind: head}


@torch.no_grad()
def _moments(colour: Tensor, coloured: Tensor) -> Tensor:
    """float64 [4] of all ranks: Σ a, Σ b, pixels, Σ a² + b², of pictures that have colour."""
    counting = coloured.double().view(-1, 1, 1, 1)
    values = colour.double() * counting
    pixels = counting.sum() * colour[0, 0].numel()
    sums = torch.stack([values[:, 0].sum(), values[:, 1].sum(), pixels, (values * colour).sum()])
    return distributed.all_reduce_sum(sums)
