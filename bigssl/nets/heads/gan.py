"""A game of two networks in one backward pass (Goodfellow et al. 2014, arXiv 1406.2661).

    L_GEN = −E log D(G)        reaches the generator and no weight of the discriminator (`against`)
    L_DIS = −E log D(x) − E log(1 − D(G))        reaches the discriminator and no weight of the generator (G detached)

Both are taken of the same weights and applied in the same optimizer step, at every ZeRO stage: to call a discriminator
with copies of its weights fails where ZeRO-3 holds them in slices. What needs a second derivative (gradient penalties:
R1, WGAN-GP) fails at stage 3 as well and is not offered.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigssl import distributed
from bigssl.nets.norm import group_norm

UNDECIDED = math.log(2)
"""L_GEN in nats where D is 1/2 everywhere; L_DIS is twice that."""
SMALLEST = 8  # pixels a side of a picture that a discriminator halves at least once
_LAST = 4  # pixels a side of the map that it judges by, or up to twice that


class Discriminator(nn.Module):
    """Is it a picture, or made? Strided convolutions down to a map of 4 × 4 (DCGAN, Radford et al. 2016, arXiv
    1511.06434).

    In place of DCGAN's BatchNorm there is GroupNorm, by sample: real and made pictures then need not be normed apart or
    together, no logit depends on another sample, k accumulated passes are one batch, and there are no running buffers.
    """

    def __init__(self, size: int, channels: int, width: int) -> None:
        """size: side of the pictures, >= SMALLEST. width: channels of the first map; doubled three times at most."""
        super().__init__()
        layers: list[nn.Module] = []
        side, given = size, channels
        while side >= 2 * _LAST:
            first, out = not layers, min(width * 2 ** (len(layers) // 3), 8 * width)
            norm = nn.Identity() if first else group_norm(out)
            layers += [nn.Conv2d(given, out, 4, 2, 1, bias=first), norm, nn.LeakyReLU(0.2)]
            side, given = side // 2, out
        self.layers = nn.Sequential(*layers)
        self.judge = nn.Linear(given * side**2, 1)
        nn.init.normal_(self.judge.weight, std=0.1 * (given * side**2) ** -0.5)  # undecided at first

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, size, size] in -1..1 -> logits [B] of "a real one" and what they are made of, [B, F], float32."""
        found = self.layers(pixels).flatten(1)
        return self.judge(found).flatten().float(), found.float()


def generator_loss(made: Tensor) -> Tensor:
    """[B] logits of what was made -> [] −E log D(G)."""
    return F.softplus(-made).mean()


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """[B] logits each -> [] −E log D(x) − E log(1 − D(G))."""
    return F.softplus(-real).mean() + F.softplus(made).mean()


def against(discriminator: Discriminator, made: Tensor) -> Tensor:
    """[] L_GEN of `made` [B, C, H, W], whose gradient reaches `made` and not the discriminator.

    The gradient g with respect to `made` is taken at once; (made − made.detach()) · g has the value 0 and just that
    gradient.
    """
    if not torch.is_grad_enabled():
        return generator_loss(discriminator(made)[0])
    leaf = made.detach().requires_grad_()
    loss = generator_loss(discriminator(leaf)[0])
    (slope,) = torch.autograd.grad(loss, leaf)
    return loss.detach() + ((made - made.detach()) * slope).sum()


@torch.no_grad()
def doubt(logits: Tensor) -> Tensor:
    """[] the mean of 4 D (1 − D) over all ranks, the slope of D in parts of its steepest: 1 where a discriminator is
    undecided, 0 where it is sure, rightly or not. At .1 it is 97 % sure: log D is saturated, and L_DIS next to 0 where
    it is right."""
    unsure = 4 * logits.double().sigmoid() * (-logits.double()).sigmoid()
    sums = distributed.all_reduce_sum(torch.stack([unsure.sum(), unsure.new_tensor(len(unsure))]))
    return (sums[0] / sums[1]).float()


@torch.no_grad()
def spread_of_fills(made: Tensor, truth: Tensor, hidden: Tensor) -> Tensor:
    """How different samples are filled, beside how different they are: 0 where all are filled alike, 1 for the truth.

    The square root of: the standard deviation over the samples of the global batch at each hidden pixel (of at most
    32 × 32), of `made` in parts of that of `truth`. Blurry fills, of a generator that has just begun, vary by a few
    hundredths of what the truth does; below .1 it is less than one. 1 at most, and 1 where the truth is the same.

    Args:
        made, truth: [B, C, H, W]. hidden: bool [B, 1, H, W].
    """
    step = max(1, made.shape[-1] // 32)
    some = hidden[..., ::step, ::step].double()
    thin = torch.stack([made[..., ::step, ::step], truth[..., ::step, ::step]]).double() * some  # [2, B, C, h, w]
    own = [thin.sum(1), thin.square().flatten(1).sum(1), some.sum(0)]  # [2, C, h, w], [2], [1, h, w]
    everywhere = distributed.all_reduce_sum(torch.cat([each.flatten() for each in own]))
    sums, squares, count = (flat.view_as(each) for flat, each in zip(everywhere.split([t.numel() for t in own]), own,
                                                                    strict=True))  # fmt: skip
    moments = (squares - (sums.square() / count.clamp(min=1)).flatten(1).sum(1)).clamp(min=0)  # [2]
    same = moments[1] <= 1e-9 * squares[1]
    return torch.where(same, 1.0, moments[0] / moments[1]).pow(0.25).clamp(max=1).float()
