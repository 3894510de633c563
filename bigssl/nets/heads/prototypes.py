"""Embeddings are told apart by K prototypes, unit vectors: heads, the targets that are made of their cosines, and what
such targets are worth to one who does not see the sample (DINO, iBOT, SwAV).

Whatever is counted here is counted over all ranks: one rank computes what two do.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigssl import distributed

Centring = Literal["mean", "sinkhorn"]


def unit_rows(weight: Tensor) -> Tensor:
    """[K, D] -> rows of length 1: the constraint on prototypes that are trained as they are."""
    return F.normalize(weight, dim=-1)


class Prototypes(nn.Linear):
    """K vectors, of length 1 at the start: unit [..., D] of any float dtype -> cosines float32 [..., K].

    In float32 also under autocast: a temperature of .04 makes 25 of a rounding error.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(dim, count, bias=False)
        with torch.no_grad():
            self.weight.copy_(unit_rows(self.weight))

    def forward(self, unit: Tensor, frozen: bool = False) -> Tensor:
        """frozen: prototypes get the gradient 0 in this pass (not None: ZeRO wants the same gradients every step)."""
        with torch.autocast(unit.device.type, enabled=False):
            weight = self.weight.detach() + 0 * self.weight if frozen else self.weight
            return F.linear(unit.float(), self.normed(weight))

    def normed(self, weight: Tensor) -> Tensor:
        """As they are: a `Constraint` keeps them at length 1 (`unit_rows`)."""
        return weight


class WeightNormed(Prototypes):
    """Prototypes whose length is 1 whatever that of their parameters: weight norm with its scale fixed to 1 (Salimans
    and Kingma 2016, arXiv 1602.07868)."""

    def normed(self, weight: Tensor) -> Tensor:
        return unit_rows(weight)


class Assigned(NamedTuple):
    """Unit embeddings float32 [..., D] and their cosines with prototypes float32 [..., K]."""

    embeddings: Tensor
    cosines: Tensor


class PrototypeHead(nn.Module):
    """DINO's head (arXiv 2104.14294, section 3.1): MLP of three layers, unit length, weight-normed prototypes.

    Linear layers begin with a standard deviation of 1 over the root of their inputs: .022 at the paper's 2,048, where
    it has .02.
    """

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        sizes = (dim, hidden, hidden, bottleneck)
        layers = [nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.prototypes = WeightNormed(bottleneck, prototypes)

    def forward(self, features: Tensor, frozen: bool = False) -> Assigned:
        """features: [..., dim]. frozen: see `Prototypes`."""
        unit = F.normalize(self.layers(features).float(), dim=-1)
        return Assigned(unit, self.prototypes(unit, frozen))


@torch.no_grad()
def sinkhorn(cosines: Tensor, epsilon: float, iterations: int, counted: Tensor | None = None) -> Tensor:
    """Assignments of all ranks' samples in which every prototype gets the same share (Cuturi 2013; SwAV, appendix).

    exp(cosines / epsilon), of which prototypes and samples are scaled in turn to their share. In logarithms, which any
    epsilon allows. Collective: two sums of K numbers an iteration.

    Args:
        cosines: [n, K] of this rank; ranks may have different n.
        counted: [n] of 0 and 1, whether a sample takes part in the shares; default all. One at least has to.
    Returns:
        float32 [n, K]; rows sum to 1.
    """
    logs = cosines.float() / epsilon
    weights = 0.0 if counted is None else counted.float().log().unsqueeze(1)
    for _ in range(iterations):
        logs = logs - _logsumexp_over_ranks(logs + weights)
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.exp()


def _logsumexp_over_ranks(rows: Tensor) -> Tensor:
    """[n, K] of each rank -> [K] over all rows."""
    own = rows.logsumexp(0)
    largest = distributed.all_reduce_max(own.clone())
    return largest + distributed.all_reduce_sum((own - largest).exp()).log()


class CentredTargets(nn.Module):
    """A teacher's targets, softmax((cosines − c) / τ), c the moving average of all cosines so far (DINO, section 3.1).

    Without the centre one prototype takes all. It moves with each pass in training mode, after its targets are made.

    Attributes:
        centre: float32 [K], a buffer.
    """

    centre: Tensor

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(prototypes))

    @torch.no_grad()
    def forward(self, cosines: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
        """float32 [n, K] of this rank, which may have none -> targets [n, K]. Collective.

        counted: [n] of 0 and 1, whether a row is one (others have targets of 0); default all.
        """
        ones = cosines.new_ones(len(cosines)) if counted is None else counted.to(cosines)
        targets = ((cosines - self.centre) / temperature).softmax(-1) * ones.unsqueeze(1)
        if self.training:
            sums = distributed.all_reduce_sum(torch.cat([ones @ cosines, ones.sum().view(1)]))
            move = (1 - self.momentum) * (sums[-1] > 0)  # no row anywhere: it stays
            self.centre = self.centre + move * (sums[:-1] / sums[-1].clamp(min=1) - self.centre)
        return targets


class Shared(nn.Module):
    """A teacher's targets by Sinkhorn-Knopp, τ as its epsilon (DINOv2, Oquab et al. 2023, arXiv 2304.07193)."""

    iterations = 3

    def forward(self, cosines: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
        """As `Centred` has it."""
        targets = sinkhorn(cosines, temperature, self.iterations, counted)
        return targets if counted is None else targets * counted.to(targets).unsqueeze(1)


def centring(kind: Centring, prototypes: int, momentum: float) -> CentredTargets | Shared:
    """What makes targets of a teacher's cosines."""
    return CentredTargets(prototypes, momentum) if kind == "mean" else Shared()


def swapped(targets: Tensor, logits: Tensor) -> Tensor:
    """[] the mean cross-entropy −Σ_k p_k ln softmax(logits)_k of each view with the targets of every other view.

    Args:
        targets: float32 [T, B, K], of the first T views; rows sum to 1.
        logits: float32 [V, B, K], V > 1.
    """
    views, seen = len(logits), len(targets)
    others = logits.sum(0) - logits[:seen]  # [T, B, K]: Σ ln softmax = Σ logits − Σ logsumexp, and Σ_k p_k = 1
    level = logits.logsumexp(-1)  # [V, B]
    total = seen * level.sum() - level[:seen].sum() - (targets * others).sum()
    return total / (logits.shape[1] * (seen * views - seen))


BLIND = "the mean of other samples' targets"
"""What `Frequencies` says, in words."""


class Frequencies(nn.Module):
    """How often each prototype was a target in the last passes, at each place: what one predicts who sees nothing.

    The blind line of a task with prototypes: the mean cross-entropy of each sample's targets with the targets of all
    other samples of this pass and, with less and less weight, of those before; or with equal shares (ln K), where these
    are better. A sample is no part of its own prediction, nor are targets that come later, so that nothing is gained by
    hindsight, however few samples and many prototypes there are.

    Attributes:
        mass: float32 [places, K], a buffer: sums of targets, those of each pass .9 of the ones after it.
    """

    mass: Tensor
    momentum = 0.9

    def __init__(self, prototypes: int, places: int = 1) -> None:
        super().__init__()
        self.register_buffer("mass", torch.zeros(places, prototypes))

    @torch.no_grad()
    def forward(self, targets: Tensor, weights: Tensor, places: Tensor | None = None) -> Tensor:
        """The blind line of this pass, after which it counts as seen (in training mode). Collective.

        Args:
            targets: float32 [n, K] of this rank: of a sample, the sum over its views.
            weights: [n], with which their cross-entropies are summed over all ranks.
            places: int64 [n], where knowing the place does not count as seeing (patches); default one place.
        Returns:
            [] the same on every rank.
        """
        count = self.mass.shape[1]
        places = torch.zeros(len(targets), dtype=torch.int64, device=targets.device) if places is None else places
        here = distributed.all_reduce_sum(torch.zeros_like(self.mass).index_add_(0, places, targets))
        seen = self.mass + here
        others = (seen[places] - targets).clamp_(min=0) + 1 / count  # and one more sample, of equal shares
        logs = others.log() - others.sum(1, keepdim=True).log()
        sums = torch.stack([-(weights * (targets * logs).sum(1)).sum(), (weights * targets.sum(1)).sum()])
        known, share = distributed.all_reduce_sum(sums)
        if self.training:
            self.mass = self.momentum * seen
        return torch.minimum(known, share * math.log(count))


@torch.no_grad()
def spread_of(targets: Tensor) -> dict[str, Tensor]:
    """What is left of the prototypes, each from 0 to 1 as `distributed.spread` has it, over all ranks. Collective.

    prototypes: the entropy of the mean target over its largest, ln K: 0 where one prototype takes all samples.
    assignments: the root of what a target tells of its sample (their mutual information: the entropy of the mean target
        less the mean entropy of targets) over the most it could, ln K: 0 where all samples have the same target, that
        of one prototype, of all prototypes alike or any other. (The root, since entropies differ by squares of what
        probabilities do.)

    Args:
        targets: float32 [n, K] of this rank; rows sum to 1, or to 0 where they do not count.
    """
    entropy, count = torch.special.entr(targets).sum(), targets.sum()
    sums = distributed.all_reduce_sum(torch.cat([targets.sum(0), torch.stack([entropy, count])]))
    total, largest = sums[-1].clamp(min=1), math.log(targets.shape[1])
    used = torch.special.entr(sums[:-2] / total).sum()
    told = (used - sums[-2] / total).clamp(min=0)
    return {"prototypes": used / largest, "assignments": (told / largest).sqrt()}
