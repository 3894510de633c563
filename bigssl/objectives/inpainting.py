"""Context encoder: what is hidden of a picture is painted in, and has to pass for a picture (Pathak et al. 2016, arXiv
1604.07379).

    picture ── a block, the middle, or free-form strokes hidden ── backbone ── light decoder ── tanh ── its fill
                                                                              squared error on what was hidden ──┤
               the picture, filled ── discriminator ── L_GEN = −E log D(G)   for backbone and decoder  ──────────┤
               picture, and the same ── discriminator ── L_DIS = −E log D(x) − E log(1 − D(G))   for itself      │
                                                            loss = .999 reconstruction + .001 L_GEN  ────────────┘

Backbone and decoder are the generator. Both sides move in the same step, each by the weights of before it
(`bigssl/nets/heads/gan.py`: no gradient of one loss reaches the other's weights); the discriminator at a tenth of the
rate, as in the paper, with betas of .5 and .999, as in DCGAN, and with a clipped gradient of its own: by one norm, a
steep discriminator would stop the generator (`optim.groups` of a recipe may say otherwise of `^discriminator`). It sees
whole pictures, whatever the hole's shape, where the paper's sees the fill alone if that is the middle.

A game has two losses, and what both sides together want is no number: the total is the generator's loss. That of the
discriminator enters with its gradient and without its value (a discriminator that wins would look like progress) and is
reported beside it, in nats, as L_GEN is. With D = 1/2 everywhere they are 2 ln 2 and ln 2; a generator that is found
out ends above ln 2, as the paper's does, whose reconstruction counts a thousand times as much. Collapse shows in
`spread`:

    fills           what is painted in, over samples, beside how the truth varies: 0 where all are filled alike
    features        of the backbone
    discriminator   what it judges by: 0 where it says the same of everything
    doubt           4 D (1 − D): 0 where it is sure of everything: it has won, or says the same; log D is saturated

Gradient penalties (R1, WGAN-GP) need a second derivative, which fails at ZeRO-3, and are not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.config.optim import Group
from bigssl.data.kinds.augment import SimClrAugment
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.heads import gan
from bigssl.nets.modality import MODALITIES
from bigssl.nets.pool import normalise
from bigssl.nets.progress import Progress
from bigssl.nets.remaking import holes
from bigssl.nets.remaking.base import GREY
from bigssl.nets.remaking.inpainting import InpaintingRemaker
from bigssl.nets.remaking.upsampling import NARROWEST
from bigssl.nets.towers import Tower
from bigssl.nets.weightless import on_shapes, without_numbers
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig
from bigssl.objectives.needs import Needs
from bigssl.objectives.seeing import picture_of

_SMALLEST = max(gan.SMALLEST, holes.SMALLEST)
_UNSEEN, _COIN = "fills that nobody can tell from pictures", "tossing a coin"


class Inpainting(Objective):
    """Paint in what is hidden of a picture (context encoder, GAN)."""

    class Config(ObjectiveConfig):
        backbone: str = "image"
        hole: holes.Shape = Field("block", description="what is hidden: a block, the center, or irregular strokes")
        share: float = Field(0.25, ge=holes.LEAST, le=holes.MOST, description="share of the picture that is hidden")
        overlap: int = Field(0, ge=0, description="pixels around a hole that are painted, too; the paper: 7 of 128")
        overlap_weight: float = Field(10.0, gt=0, description="of their error, beside 1 for a hidden pixel")
        reconstruction: float = Field(0.999, gt=0, description="weight of the squared error")
        adversarial: float = Field(0.001, gt=0, description="weight of the generator's loss")
        decoder_dim: int = Field(256, ge=NARROWEST, description="channels of the decoder's first stage")
        discriminator_dim: int = Field(64, ge=1, description="channels of the discriminator's first map")
        min_scale: float = Field(0.2, gt=0, le=1, description="smallest share of the image that a crop keeps")
        flip: bool = Field(True, description="mirror half of the images")

    takes = {"backbone": Needs("image")}
    starts = {"decoder_dim": 64, "discriminator_dim": 16, "min_scale": 0.5}
    accumulates = True
    adjustable = ("hole", "share", "overlap", "overlap_weight", "reconstruction", "adversarial", "min_scale", "flip")
    preset = {
        "objective": {"share": 0.5, "decoder_dim": 16, "discriminator_dim": 8, "min_scale": 1.0},
        "backbones": {"image": "vit"},
    }

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        size, channels = self.backbone.size, self.backbone.channels
        self._check(config, size)
        self.remaker = InpaintingRemaker(
            dim=self.backbone.dim, side=_side(config.backbone, self.backbone), size=size,
            width=config.decoder_dim, hole=config.hole, share=config.share, channels=channels,
        )  # fmt: skip
        self.discriminator = gan.Discriminator(size, channels, config.discriminator_dim)
        self.augment = SimClrAugment(
            size, min_scale=config.min_scale, flip=config.flip, jitter=0.0, grey=0.0, blur=0.0
        )

    def _check(self, config: Config, size: int) -> None:
        if size < _SMALLEST:
            raise ConfigError(
                f"objective.backbone: backbone {config.backbone!r} has pictures of {size} pixels a side; allowed: at "
                f"least {_SMALLEST}, so that a discriminator can halve them and a border of a hole is seen"
            )
        if config.overlap > size // 4:
            raise ConfigError(f"objective.overlap: value {config.overlap}; allowed: up to {size // 4}, a quarter of a "
                              f"picture's side")  # fmt: skip
        if not config.overlap and config.overlap_weight != type(config).model_fields["overlap_weight"].default:
            raise ConfigError(f"objective.overlap_weight: value {config.overlap_weight} has no effect with overlap 0; "
                              f"allowed: leave it out, or overlap > 0")  # fmt: skip

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        image = self.augment(picture_of(sample, self.backbone), rng)
        return {"image": image, "hidden": self.remaker.holes.draw(rng)}

    def forward(self, batch: dict[str, Tensor], at: Progress) -> Losses:
        pixels, hidden = normalise(batch["image"]), batch["hidden"]
        states = self.backbone.hidden({"image": batch["image"].masked_fill(hidden, GREY)})  # [B, T, D]
        made = self.remaker(states)  # [B, C, H, W]
        filled = torch.where(hidden, made, pixels)
        real, seen = self.discriminator(pixels)  # two passes: a discriminator norms each sample by itself
        fake, also = self.discriminator(filled.detach())
        judged = self._judged(real, fake)
        parts = {
            "reconstruction": self._reconstruction(made, pixels, hidden),
            "generator": Losses(gan.against(self.discriminator, filled), gan.UNDECIDED, blind_name=_UNSEEN),
            "discriminator": Losses(judged, 2 * gan.UNDECIDED, blind_name=_COIN),
        }
        weights = {"reconstruction": self.config.reconstruction, "generator": self.config.adversarial}
        total = sum((weight * parts[name].total for name, weight in weights.items()), judged - judged.detach())
        blind = sum(weight * parts[name].blind for name, weight in weights.items())
        spread = {
            "fills": gan.spread_of_fills(made.detach(), pixels, hidden),
            "features": distributed.spread(states.mean(1)),
            "discriminator": distributed.spread(torch.cat([seen, also])),
            "doubt": gan.doubt(torch.cat([real, fake])),
        }
        stats = {"real": real.detach().sigmoid().mean(), "filled": fake.detach().sigmoid().mean()}
        return Losses(
            total, blind, "weighted loss", "the mean of the visible border, if nobody could tell it",
            {name: part.detached() for name, part in parts.items()}, stats, spread,
        )  # fmt: skip

    def _reconstruction(self, made: Tensor, pixels: Tensor, hidden: Tensor) -> Losses:
        """Mean over samples of each one's weighted mean of (G − x)² over what is painted: Σ w (G − x)² / Σ w, with
        w = 1 where it is hidden, `overlap_weight` in the band around it, else 0.

        Blind: the same of b, the mean colour of the visible pixels that touch the hole, over all ranks. Without a band
        it is, by sample and channel, Var(x) + (mean(x) − b)² over the hidden pixels.
        """
        weight = hidden.float()
        if self.config.overlap:
            weight = weight + self.config.overlap_weight * holes.around(hidden, self.config.overlap)

        def error(said: Tensor) -> Tensor:
            squares = ((said - pixels).square() * weight).sum((1, 2, 3))
            return (squares / (weight.sum((1, 2, 3)) * pixels.shape[1])).mean()

        with torch.no_grad():
            blind = distributed.all_reduce_sum(error(holes.border_mean(pixels, hidden))) / distributed.world()
        return Losses(error(made), blind, "squared error", "the mean of the visible border")

    def _judged(self, real: Tensor, made: Tensor) -> Tensor:
        return gan.discriminator_loss(real, made)

    def groups(self) -> list[Group]:
        return [Group(pattern=r"^discriminator\.", lr=0.1, betas=(0.5, 0.999), clip=1.0)]

    def guards(self) -> dict[str, Callable[[], None]]:
        """Without the reconstruction the generator may paint one thing, too: in 4 of 7 tries of 60 steps."""

        def of_made_alone(real: Tensor, made: Tensor) -> Tensor:
            return gan.discriminator_loss(real * 0, made)

        return {"real pictures": lambda: setattr(self, "_judged", of_made_alone)}

    def exports(self) -> dict[str, Head | Network]:
        of = {"image": self.config.backbone}
        judge = dict[str, Tensor](self.discriminator.named_parameters())
        return {
            "inpainting": Head(self.remaker.kind, of, self.remaker.learnt(), self.remaker.settings),
            "discriminator": Head("discriminator", of, judge),
        }


def _side(name: str, backbone: Tower) -> int:
    """Side of the map of hidden states. Raises ConfigError where they are none."""
    copied = without_numbers(backbone.model).eval()
    with on_shapes(), torch.no_grad():
        picture = torch.zeros(1, backbone.channels, backbone.size, backbone.size, dtype=torch.uint8)
        count = MODALITIES["image"].hidden(copied, {"image": picture}).shape[1]
    side = round(count**0.5)
    if side**2 != count:
        raise ConfigError(
            f"objective.backbone: backbone {name!r} of type {backbone.model.config.model_type} gives {count} hidden "
            f"states for a picture; allowed: a square map of them, from which a picture can be made"
        )
    return side
