"""MAE: three quarters of the patches are hidden, and their pixels predicted (He et al. 2022, arXiv 2111.06377).

    image ── crop ── patches ── the visible ones ── vision transformer ── decoder with mask tokens ── squared error on
                                                                                                      the hidden ones

The backbone is a plain vision transformer: it sees the visible patches only while it is trained here, and all of them
wherever else it is used (probe, evaluation, export). Its positions are learned, as transformers has them for its type;
the paper's are fixed sines and cosines, as the decoder's are here. Which are hidden follows from the sample and the
step, not from the rank. Targets are the pixels of a patch minus their mean, divided by their standard deviation
(section 4.2), or with `normalised_pixels: false` the pixels in -1..1. The blind line is what knows each hidden patch's
mean, or then the mean picture of the data.
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
from bigssl.data.kinds.augment import SimClrAugment
from bigssl.data.loading.loader import SEEDS
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.pool import normalise
from bigssl.nets.progress import Progress
from bigssl.nets.remaking.lines import mean_picture_error
from bigssl.nets.remaking.mae import EPSILON, MaeRemaker, can_hide, encode_visible, patches_of, rows_at, targets
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig
from bigssl.objectives.needs import Needs
from bigssl.objectives.seeing import picture_of

PATCHES = ("vit", "vit_msn", "deit", "dinov2", "dinov2_with_registers")
"""Backbones whose embeddings are leading tokens and one token a patch, with its position in it: what the layers after
them see may be fewer. (Swin's windows, BEiT's and DINOv3's positions within attention need all.)"""
_FLAT = 1e-4  # variance of pixels in -1..1 below which a patch shows nothing: about one grey level


class Mae(Objective):
    """Predict the pixels of hidden patches (MAE)."""

    class Config(ObjectiveConfig):
        backbone: str = "image"
        ratio: float = Field(0.75, gt=0, lt=1, description="share of the patches that are hidden")
        normalised_pixels: bool = Field(True, description="predict each patch without its mean and scale; false: its "
                                                           "pixels as they are")  # fmt: skip
        decoder_dim: int = Field(512, ge=4, multiple_of=4, description="width of the decoder")
        decoder_layers: int = Field(8, ge=1)
        decoder_heads: int = Field(16, ge=1)
        min_scale: float = Field(0.2, gt=0, le=1, description="smallest share of the image that a crop keeps")
        flip: bool = Field(True, description="mirror half of the images")

    takes = {"backbone": Needs("image", PATCHES, "which cannot leave patches out")}
    starts = {"decoder_dim": 64, "decoder_layers": 2, "decoder_heads": 4, "min_scale": 0.5}
    accumulates = seeded = True
    adjustable = ("ratio", "min_scale", "flip")
    cannot_collapse = True  # one picture's pixels are not another's
    preset = {
        "objective": {"decoder_dim": 32, "decoder_layers": 1, "decoder_heads": 2, "min_scale": 1.0},
        "backbones": {"image": "vit"},
    }

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.patch, self.patches = _grid(config.backbone, self.backbone)
        self.visible = int(self.patches * (1 - config.ratio) + 1e-9)
        if not 1 <= self.visible < self.patches:
            raise ConfigError(
                f"objective.ratio: value {config.ratio} leaves {self.visible} of {self.patches} patches; allowed: "
                f"from {1 / self.patches:.4g} to {1 - 1 / self.patches:.4g}, so that one is hidden and one is seen"
            )
        if config.decoder_dim % config.decoder_heads:
            raise ConfigError(
                f"objective.decoder_heads: value {config.decoder_heads}; allowed: a divisor of decoder_dim "
                f"{config.decoder_dim}"
            )
        self.remaker = MaeRemaker(
            dim=self.backbone.dim, size=self.backbone.size, patch=self.patch, visible=self.visible,
            width=config.decoder_dim, layers=config.decoder_layers, heads=config.decoder_heads,
            channels=self.backbone.channels, normalised=config.normalised_pixels,
        )  # fmt: skip
        if not config.normalised_pixels:
            self.least = 2  # of one picture, the mean picture is itself
        can_hide(self.backbone.model)
        self.augment = SimClrAugment(
            self.backbone.size, min_scale=config.min_scale, flip=config.flip, jitter=0.0, grey=0.0, blur=0.0
        )

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        image = picture_of(sample, self.backbone)
        return {"image": self.augment(image, rng)}

    def forward(self, batch: dict[str, Tensor], at: Progress) -> Losses:
        pixels = normalise(batch["image"])
        order = self.remaker.order(batch[SEEDS])  # [B, N]; the first are visible
        hidden = encode_visible(self.backbone.model, pixels, order[:, : self.visible])  # [B, 1 + visible, D]
        predicted = self.remaker(hidden, order)  # [B, N, P]
        whole = patches_of(pixels, self.patch)
        masked = order[:, self.visible :]
        target, variance = targets(whole)
        blind, flat = blind_error(rows_at(variance, masked), target.shape[-1])
        named = "each hidden patch's mean"
        if not self.config.normalised_pixels:
            target, blind, named = whole, mean_picture_error(pixels), "the mean picture"
        error = (rows_at(predicted, masked) - rows_at(target, masked)).square().mean()
        spread = {"features": distributed.spread(hidden[:, 1:].mean(1))}
        return Losses(error, blind, "squared error", named, stats={"flat": flat}, spread=spread)

    def exports(self) -> dict[str, Head | Network]:
        head = Head(self.remaker.kind, {"image": self.config.backbone}, self.remaker.learnt(),
                    self.remaker.settings)  # fmt: skip
        return {"mae": head}


@torch.no_grad()
def blind_error(variance: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """What a predictor has that knows each hidden patch's mean and nothing else, and the share of patches that show
    nothing; over all ranks.

    In normalised pixels the mean is 0, so its error is that of 0: Σ (x − mean)² / P / (v + ε), where Σ (x − mean)² is
    (P − 1) v by the definition of the unbiased variance v. That is (1 − 1/P) · v / (v + ε): next to 1 for a patch that
    shows something, and 0 for one of a single colour, of which there is nothing to predict.

    Args:
        variance: [B, M, 1] of the hidden patches. pixels: P, numbers in a patch.
    """
    error = (1 - 1 / pixels) * (variance / (variance + EPSILON)).mean()
    sums = torch.stack([error, (variance < _FLAT).float().mean()])
    blind, flat = distributed.all_reduce_sum(sums) / distributed.world()
    return blind, flat


def _grid(name: str, backbone: Tower) -> tuple[int, int]:
    """Side of a patch, and how many there are. Raises ConfigError where they do not fill the picture."""
    config = backbone.model.config
    where = f"objective.backbone: backbone {name!r} is of type {config.model_type}"
    patch = config.patch_size
    if not isinstance(patch, int) or backbone.size % patch:
        raise ConfigError(f"{where} with patch_size {patch}; allowed: a number that divides its size {backbone.size}")
    return patch, (backbone.size // patch) ** 2
