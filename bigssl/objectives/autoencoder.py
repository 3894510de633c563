"""Autoencoder: a convolutional network's last feature map has to hold what it takes to draw the picture again
(Rumelhart, Hinton and Williams 1986; with noise: Vincent et al. 2008, https://doi.org/10.1145/1390156.1390294).

    image ── crop ── (noise) ── convolutional network ── last feature map ── decoder ── squared error per pixel, −1..1

The bottleneck is the network's own: of a ResNet at 64 pixels, 2 × 2 places. The blind line is the error of the mean
picture, which is the variance of the data per pixel. Nothing can collapse: one constant draws one picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
from bigssl.nets.remaking.autoencoder import AutoencoderRemaker, feature_map
from bigssl.nets.remaking.lines import mean_picture_error
from bigssl.nets.towers import Tower
from bigssl.nets.weightless import on_shapes, without_numbers
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig
from bigssl.objectives.needs import Needs
from bigssl.objectives.seeing import picture_of

MAPS = ("bit", "convnext", "convnextv2", "efficientnet", "mobilenet_v1", "mobilenet_v2", "regnet", "resnet",
        "resnet_cifar")  # fmt: skip
"""Backbones whose last hidden states are a map, [B, D, h, w]."""


class Autoencoder(Objective):
    """Draw a picture again from the last feature map of a convolutional network (autoencoder)."""

    class Config(ObjectiveConfig):
        backbone: str = "image"
        noise: float = Field(0.0, ge=0, description="standard deviation of Gaussian noise on what the network sees, "
                                                    "where pixels are -1..1; 0: none (denoising)")  # fmt: skip
        width: int = Field(256, ge=16, multiple_of=8, description="channels of the decoder's first stage")
        min_scale: float = Field(0.2, gt=0, le=1, description="smallest share of the image that a crop keeps")
        flip: bool = Field(True, description="mirror half of the images")

    takes = {"backbone": Needs("image", MAPS, "which has no feature map")}
    starts = {"width": 128, "min_scale": 0.5}
    least = 2  # of one picture, the mean picture is itself
    accumulates = seeded = narrow = True
    adjustable = ("noise", "min_scale", "flip")
    cannot_collapse = True  # one picture's pixels are not another's
    preset = {
        "objective": {"width": 32, "noise": 0.1, "min_scale": 1.0},
        "backbones": {"image": {  # without BatchNorm, for `accumulates`
            "type": "convnext", "size": 32, "config": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2,
                                                               "layer_scale_init_value": 1.0},
        }},  # fmt: skip
    }

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        channels, side = _map_of(config.backbone, self.backbone)
        numbers, pixels = channels * side**2, self.backbone.channels * self.backbone.size**2
        if not config.noise and numbers >= pixels:
            raise ConfigError(
                f"objective.noise: value 0, and the feature map of backbone {config.backbone!r} has {numbers:,} "
                f"numbers for the {pixels:,} of a picture, which could be copied; allowed: noise (0.3, for example), "
                "or a smaller map"
            )
        self.remaker = AutoencoderRemaker(
            dim=channels, side=side, size=self.backbone.size, width=config.width,
            channels=self.backbone.channels, noise=config.noise,
        )  # fmt: skip
        self.augment = SimClrAugment(
            self.backbone.size, min_scale=config.min_scale, flip=config.flip, jitter=0.0, grey=0.0, blur=0.0
        )

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        return {"image": self.augment(picture_of(sample, self.backbone), rng)}

    def forward(self, batch: dict[str, Tensor], at: Progress) -> Losses:
        hidden = feature_map(self.backbone.model, self.remaker.shown(batch["image"], batch[SEEDS]))
        pixels = normalise(batch["image"])
        error = F.mse_loss(self.remaker(hidden), pixels)
        spread = {"features": distributed.spread(hidden.mean((2, 3)))}
        return Losses(error, mean_picture_error(pixels), "squared error", "the mean picture", spread=spread)

    def exports(self) -> dict[str, Head | Network]:
        remaker = self.remaker
        head = Head(remaker.kind, {"image": self.config.backbone}, remaker.learnt(), remaker.settings)
        return {"autoencoder": head}


def _map_of(name: str, backbone: Tower) -> tuple[int, int]:
    """Channels and side of the last feature map. Raises ConfigError where there is none."""
    with on_shapes(), torch.no_grad():
        twin = without_numbers(backbone.model).eval()
        hidden = twin(pixel_values=torch.empty(1, backbone.channels, backbone.size, backbone.size)).last_hidden_state
    if hidden.dim() != 4 or hidden.shape[-1] != hidden.shape[-2]:
        raise ConfigError(f"objective.backbone: backbone {name!r}: its last hidden states are {list(hidden.shape)}; "
                          "allowed: one whose last hidden states are a square map")  # fmt: skip
    return int(hidden.shape[1]), int(hidden.shape[-1])
