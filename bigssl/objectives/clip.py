"""CLIP: an image finds its caption, and a caption its image, among the global batch (https://arxiv.org/abs/2103.00020).

    image ── crop ── image backbone ── linear ── z_image ┐
    caption ─────── text backbone ──── linear ── z_text ─┴─ symmetric cross-entropy, learned scale capped at 100

`dim` is 128, for small networks; the paper has 512 and more. Of an image with several captions, one is drawn each time
that it is seen (data/kinds/captions.py says where they lie).
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
from bigssl.data.kinds import text as textual
from bigssl.data.kinds.augment import SimClrAugment
from bigssl.data.kinds.captions import caption_of
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig, attraction
from bigssl.objectives.comparing import Comparing
from bigssl.objectives.needs import Needs
from bigssl.objectives.scale import capped_scale, log_scale_of
from bigssl.objectives.seeing import picture_of
from bigssl_kernels import clip_loss


class Clip(Comparing, Objective):
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
        self.log_scale = log_scale_of(0.07)
        self.augment = SimClrAugment(
            self.image.size, min_scale=config.min_scale, flip=config.flip, jitter=0.0, grey=0.0, blur=0.0
        )

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        caption = caption_of(sample, rng)
        input_ids, attention_mask = textual.encode(self.text.tokenizer, caption, self.text.length)
        image = picture_of(sample, self.image)
        return {"image": self.augment(image, rng), "input_ids": input_ids, "attention_mask": attention_mask}

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**self._projected(batch), "scale": capped_scale(self.log_scale)}

    def _projected(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both towers' embeddings, float32 [B, dim] each."""
        image = self.image_projection(self.image.features(batch)).float()
        text = self.text_projection(self.text.features(batch)).float()
        return {"image": image, "text": text}

    def compare(self, embeddings: Mapping[str, Tensor], at: Progress) -> Losses:
        image, text, scale = (embeddings[name] for name in ("image", "text", "scale"))
        loss = self._contrast(image, text, scale)
        blind = math.log(len(image) * distributed.world())  # every similarity equal
        spread = {"images": distributed.spread(image), "texts": distributed.spread(text)}
        views = {"pairs": torch.stack([image, text]).detach()}
        return Losses(loss, blind, stats={"scale": scale.detach()}, spread=spread, views=views)

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
            "logit_scale": capped_scale(self.log_scale),
        }
        return {"clip": Head("clip", {"image": self.config.image, "text": self.config.text}, tensors)}
