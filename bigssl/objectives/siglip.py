"""SigLIP: of each image and each caption of the global batch, do they belong together? (https://arxiv.org/abs/2303.15343)

    image ── crop ── image backbone ── linear ── x ┐
    caption ─────── text backbone ──── linear ── y ┴─ 1/N Σ_i Σ_j softplus(−s_ij (t x_i·y_j + b)),  s_ij = ±1

t = exp(t') and b are learned, from 10 and −10, which is near the best constant for a batch of 32,768. Networks
and samples are CLIP's, whose softmax over all pairs is replaced by a question for each pair. Of the batch of all
ranks, this rank's images meet all captions tile by tile: no N × N matrix is ever there.

The blind line is that of the best constant logit, ln(1 / (N − 1)): the entropy of "one pair of N belongs together",
N² pairs over N images, which is N ln N − (N − 1) ln(N − 1), near 1 + ln N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bigssl import distributed
from bigssl.nets.progress import Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network
from bigssl.objectives.clip import Clip
from bigssl_kernels import sigmoid_loss


class Siglip(Clip):
    """Tell pairs of images and captions from others, one by one (SigLIP)."""

    class Config(Clip.Config):
        scale: float = Field(10.0, gt=0, description="where the factor t on cosines begins")
        bias: float = Field(-10.0, description="where b begins; −ln(batch) says that one pair of a batch is one")

    starts = {"bias": -5.0}
    preset = {
        "objective": {"dim": 32, "scale": 5.0, "bias": -2.5}, "backbones": {"image": "resnet", "text": "bert"}
    }

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__(config, towers)
        self.log_scale = nn.Parameter(torch.tensor([math.log(config.scale)]))
        self.bias = nn.Parameter(torch.tensor([config.bias]))

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**self._projected(batch), "scale": self.log_scale.exp()[0], "bias": self.bias[0]}

    def compare(self, embeddings: Mapping[str, Tensor], at: Progress) -> Losses:
        image, text, scale, bias = (embeddings[name] for name in ("image", "text", "scale", "bias"))
        return Losses(
            self._tell(image, text, scale, bias),
            best_base_rate(len(image) * distributed.world()),
            blind_name="the share of pairs that belong together",
            stats={"scale": scale.detach(), "bias": bias.detach()},
            **self.seen(embeddings),
        )

    def _tell(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return sigmoid_loss(image, text, scale, bias, group=distributed.group())

    def guards(self) -> dict[str, Callable[[], None]]:
        def only_pairs(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
            return F.softplus(-(scale * F.cosine_similarity(image, text) + bias)).mean()

        return {"negatives": lambda: setattr(self, "_tell", only_pairs)}

    def exports(self) -> dict[str, Head | Network]:
        """Two projections as CLIP has them, by which the same evaluations rank; the bias moves no rank."""
        return {"siglip": self.head("clip", self.log_scale.exp()[0], logit_bias=self.bias[0])}


def best_base_rate(pairs: int) -> float:
    """The sigmoid loss of `pairs` images and captions at the constant logit that is best, ln(1 / (pairs − 1))."""
    return pairs * math.log(pairs) - (pairs - 1) * math.log(max(pairs - 1, 1))
