"""CLIP: an image finds its caption, and a caption its image, among the global batch (https://arxiv.org/abs/2103.00020).

    image ── crop ── image backbone ── linear ── z_image ┐
    caption ─────── text backbone ──── linear ── z_text ─┴─ symmetric cross-entropy, learned scale capped at 100
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
from bigssl.data.kinds import decode
from bigssl.data.kinds import text as textual
from bigssl.data.kinds.augment import SimClrAugment
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig, attraction
from bigssl.objectives.needs import Needs
from bigssl.objectives.seeing import picture_of
from bigssl_kernels import clip_loss

MAX_SCALE = 100.0


class CappedExp(torch.autograd.Function):
    """min(exp(x), cap), whose gradient passes at the cap as well where a step along it would lower x.

    With the gradient of `clamp` a scale that one step took beyond the cap would stay there for the rest of the run. The
    sign that counts is that of the gradient over all ranks, since that is the one the optimizer follows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float) -> Tensor:
        value = x.detach().clamp(max=math.log(cap)).exp().clamp(max=cap)  # the first clamp: exp must not overflow
        ctx.save_for_backward(value, x.detach() > math.log(cap))
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        value, beyond = ctx.saved_tensors
        everywhere = distributed.all_reduce_sum(grads[0].detach().clone())
        return grads[0] * value * (~beyond | (everywhere > 0)), None


class Clip(Objective):
    """Match images and captions (CLIP)."""

    class Config(ObjectiveConfig):
        image: str = Field("image", description="image backbone")
        text: str = Field("text", description="text backbone")
        dim: int = Field(128, ge=1, description="size of the shared space")
        min_scale: float = Field(0.6, gt=0, le=1, description="smallest share of the image that a crop keeps")
        flip: bool = Field(False, description="mirror images (wrong for captions that say left and right)")

    takes = {"image": Needs("image"), "text": Needs("text", sees="both")}
    least = 2  # one sample is compared with itself
    adjustable = ("min_scale", "flip")
    preset = {"objective": {"dim": 8}, "backbones": {"image": "resnet", "text": "bert"}}

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.image = self.backbone_of(towers, "image")
        self.text = self.backbone_of(towers, "text")
        self.image_projection = nn.Linear(self.image.dim, config.dim, bias=False)
        self.text_projection = nn.Linear(self.text.dim, config.dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))  # [1]: DeepSpeed cannot broadcast a []
        self.augment = SimClrAugment(
            self.image.size, min_scale=config.min_scale, flip=config.flip, jitter=0.0, grey=0.0, blur=0.0
        )

    def _scale(self) -> Tensor:
        scale: Tensor = CappedExp.apply(self.log_scale, MAX_SCALE)
        return scale[0]

    def sources(self) -> list[str]:
        return [self.config.source]

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        caption = decode.running_text(sample)
        input_ids, attention_mask = textual.encode(self.text.tokenizer, caption, self.text.length)
        image = picture_of(sample, self.image)
        return {"image": self.augment(image, rng), "input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, batch: dict[str, Tensor], at: Progress) -> Losses:
        image = self.image_projection(self.image.features(batch)).float()
        text = self.text_projection(self.text.features(batch)).float()
        scale = self._scale()
        loss = self._contrast(image, text, scale)
        blind = math.log(len(image) * distributed.world())  # every similarity equal
        spread = {"images": distributed.spread(image), "texts": distributed.spread(text)}
        return Losses(loss, blind, stats={"scale": scale.detach()}, spread=spread)

    def _contrast(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return clip_loss(image, text, scale, group=distributed.group())

    def guards(self) -> dict[str, Callable[[], None]]:
        def attracted(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            return scale * attraction(image, text)

        return {"negatives": lambda: setattr(self, "_contrast", attracted)}

    def exports(self) -> dict[str, Head | Network]:
        tensors = {
            "image_projection": self.image_projection.weight,
            "text_projection": self.text_projection.weight,
            "logit_scale": self._scale(),
        }
        return {"clip": Head("clip", {"image": self.config.image, "text": self.config.text}, tensors)}
