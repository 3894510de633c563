"""CLIP: an image finds its caption, and a caption its image, among the global batch (https://arxiv.org/abs/2103.00020).

    image ── crop ── image backbone ── linear ── z_image ┐
    caption ─────── text backbone ──── linear ── z_text ─┴─ symmetric cross-entropy, learned scale capped at 100

`dim` is 128, for small networks; the paper has 512 and more. Of an image with several captions, one is drawn each time
that it is seen (data/kinds/captions.py says where they lie). `audio_text` and `audio_image` are the same of sounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from bigssl import distributed
from bigssl.data.kinds import text as textual
from bigssl.data.kinds.augment import SimClrAugment
from bigssl.data.kinds.captions import caption_of
from bigssl.data.kinds.sound.windows import sound_of
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

PLURAL = {"image": "images", "text": "texts", "audio": "sounds"}


class Contrasting(Comparing):
    """Mixed into an `Objective` that matches what two backbones make of a sample, each of a modality of its own.

    sides: the modalities, which are the names of the fields of `Config` that name the backbones.
    """

    sides: ClassVar[tuple[str, str]]
    config: Any

    def __init__(self: Any, config: Any, towers: Mapping[str, Tower]) -> None:
        """Backbones as `image`, `text` or `audio`, and projections. Raises ConfigError."""
        super().__init__()
        self.config = config
        for side in self.sides:
            setattr(self, side, self.backbone_of(towers, side))
        for side in self.sides:
            setattr(self, f"{side}_projection", nn.Linear(getattr(self, side).dim, config.dim, bias=False))
        self.log_scale = log_scale_of(0.07)
        if "image" in self.sides:
            self.augment = SimClrAugment(
                self.image.size, min_scale=config.min_scale, flip=config.flip, jitter=0.0, grey=0.0, blur=0.0
            )

    def prepare(self: Any, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        """What each side takes."""
        found: dict[str, Any] = {}
        if "text" in self.sides:
            ids, mask = textual.encode(self.text.tokenizer, caption_of(sample, rng), self.text.length)
            found |= {"input_ids": ids, "attention_mask": mask}
        if "image" in self.sides:
            found["image"] = self.augment(picture_of(sample, self.image), rng)
        if "audio" in self.sides:
            found |= sound_of(sample, self.audio.rate, self.audio.length, rng, quiet=self.config.quiet,
                              augment=self.config.augment)  # fmt: skip
        return found

    def embed(self: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**self._projected(batch), "scale": capped_scale(self.log_scale)}

    def _projected(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both towers' embeddings by side, float32 [B, dim] each."""
        return {side: getattr(self, f"{side}_projection")(getattr(self, side).features(batch)).float()
                for side in self.sides}  # fmt: skip

    def compare(self, embeddings: Mapping[str, Tensor], at: Progress) -> Losses:
        one, other = (embeddings[side] for side in self.sides)
        loss = self._contrast(one, other, embeddings["scale"])
        blind = math.log(len(one) * distributed.world())  # every similarity equal
        return Losses(loss, blind, stats={"scale": embeddings["scale"].detach()}, **self.seen(embeddings))

    def seen(self, embeddings: Mapping[str, Tensor]) -> dict[str, Any]:
        """Spread and views of the embeddings."""
        spread = {PLURAL[side]: distributed.spread(embeddings[side]) for side in self.sides}
        views = {"pairs": torch.stack([embeddings[side] for side in self.sides]).detach()}
        return {"spread": spread, "views": views}

    def _contrast(self, one: Tensor, other: Tensor, scale: Tensor) -> Tensor:
        return clip_loss(one, other, scale, group=distributed.group())

    def guards(self) -> dict[str, Callable[[], None]]:
        def attracted(one: Tensor, other: Tensor, scale: Tensor) -> Tensor:
            return scale * attraction(one, other)

        return {"negatives": lambda: setattr(self, "_contrast", attracted)}

    def head(self: Any, kind: str, scale: Tensor, **more: Tensor) -> Head:
        """The two projections and what is learned beside them."""
        tensors = {f"{side}_projection": getattr(self, f"{side}_projection").weight for side in self.sides}
        backbones = {side: getattr(self.config, side) for side in self.sides}
        return Head(kind, backbones, tensors | {"logit_scale": scale, **more})


class Clip(Contrasting, Objective):
    """Match images and captions (CLIP)."""

    class Config(ObjectiveConfig):
        image: str = Field("image", description="image backbone")
        text: str = Field("text", description="text backbone")
        dim: int = Field(128, ge=1, description="size of the shared space")
        min_scale: float = Field(0.6, gt=0, le=1, description="smallest share of the image that a crop keeps")
        flip: bool = Field(False, description="mirror images (wrong for captions that say left and right)")

    sides = ("image", "text")
    takes = {"image": Needs("image"), "text": Needs("text", sees="both")}
    least = 2  # one sample is compared with itself
    adjustable = ("min_scale", "flip")
    preset = {"objective": {"dim": 8}, "backbones": {"image": "resnet", "text": "bert"}}

    def exports(self) -> dict[str, Head | Network]:
        return {"clip": self.head("clip", capped_scale(self.log_scale))}
