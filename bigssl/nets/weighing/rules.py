"""Rules by which several losses are weighed while they are trained.

    uncertainty  Kendall, Gal and Cipolla 2018, arXiv 1705.07115: each loss has a learned variance
    gradnorm     Chen et al. 2018, arXiv 1711.02257: gradients by the last shared layer are brought to like norms
    surgery      Yu et al. 2020, arXiv 2001.06782 (PCGrad): what conflicts with another gradient is projected out
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

LEAST = 1e-2  # of GradNorm's weights, whose sum is that of the recipe's
BETAS, EPSILON = (0.9, 0.999), 1e-8


class Uncertainty(nn.Module):
    """ln σ² of each of K losses, learned; 0 at first.

    A loss in nats is that of a classification, exp(−s) L + s / 2, any other that of a regression, exp(−s) L / 2 + s / 2
    (equations 7 to 10 of the paper).
    """

    def __init__(self, losses: int) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(losses))

    def forward(self, nats: Tensor) -> tuple[Tensor, Tensor]:
        """Factors [K] of the losses, and what is added for each [K]. nats: bool [K]."""
        return uncertain(self.log_variances, nats)


def uncertain(log_variances: Tensor, nats: Tensor) -> tuple[Tensor, Tensor]:
    """See `Uncertainty`."""
    values = log_variances.float()
    return (-values).exp() * torch.where(nats, 1.0, 0.5), values / 2


class GradNorm(nn.Module):
    """Weights of K losses, moved once a step. All buffers are equal on all ranks and part of a checkpoint.

    Each step lowers Σ |G_k − mean(G) r_k^α|, in which G_k = w_k g_k is the norm of a weighted gradient, r_k how much of
    its first value the loss still has, relative to the mean of that over the losses, and what is aimed at is held
    fixed. It does so by Adam, as weights differ in scale; after it they sum to what they did at first.
    """

    weights: Tensor
    first: Tensor
    moments: Tensor
    step: Tensor

    def __init__(self, weights: Tensor, alpha: float, rate: float) -> None:
        """weights: float32 [K], those of the recipe. alpha: α. rate: of Adam."""
        super().__init__()
        self.alpha, self.rate, self.sum = alpha, rate, float(weights.sum())
        self.register_buffer("weights", weights.clone())
        self.register_buffer("first", torch.zeros_like(weights))
        self.register_buffer("moments", torch.zeros(2, len(weights)))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def move(self, norms: Tensor, losses: Tensor) -> None:
        """One step; none where something is not finite.

        Args:
            norms: [K] g_k, of the gradients without weights. losses: [K]. Both of the global batch.
        """
        norms, losses = norms.float(), losses.float()
        good = torch.isfinite(norms).all() & torch.isfinite(losses).all()
        first = torch.where(self.step == 0, losses, self.first)
        slope = gradnorm_slope(self.weights, norms, losses / first, self.alpha)
        step = self.step + 1
        mean = BETAS[0] * self.moments[0] + (1 - BETAS[0]) * slope
        square = BETAS[1] * self.moments[1] + (1 - BETAS[1]) * slope.square()
        change = mean / (1 - BETAS[0] ** step) / ((square / (1 - BETAS[1] ** step)).sqrt() + EPSILON)
        weights = (self.weights - self.rate * change).clamp(min=LEAST)
        for buffer, value in ((self.weights, weights * (self.sum / weights.sum())), (self.first, first),
                              (self.moments, torch.stack([mean, square])), (self.step, step)):  # fmt: skip
            buffer.copy_(torch.where(good, value, buffer))


def gradnorm_slope(weights: Tensor, norms: Tensor, left: Tensor, alpha: float) -> Tensor:
    """[K] derivatives of GradNorm's loss by its weights. left: [K], share of its first value that each loss has."""
    weighted = weights * norms
    aim = weighted.mean() * (left / left.mean()) ** alpha
    return torch.sign(weighted - aim) * norms


def surgery(products: Tensor, seed: int) -> Tensor:
    """[K] factors of gradients whose weighted sum is PCGrad's: each is projected on the normal plane of those it
    conflicts with, one after the other in an order of chance, and all are added.

    Args:
        products: [K, K], inner products of the gradients. seed: of the orders.
    """
    count, chance = len(products), random.Random(seed)
    unit = torch.eye(count, dtype=products.dtype, device=products.device)
    squares = products.diagonal().clamp(min=torch.finfo(products.dtype).tiny)
    total = torch.zeros_like(unit[0])
    for own in range(count):
        mixed = unit[own]
        for other in chance.sample(range(count), count):
            if other != own:
                against = (mixed @ products[:, other]).clamp(max=0)
                mixed = mixed - unit[other] * (against / squares[other])
        total = total + mixed
    return total
