"""How healthy embeddings are, of every objective by the same measures: the number as published, and beside it one from
0 (collapsed) to 1 (as healthy as can be).

    rankme      span        effective number of directions (`rankme`): 1 … `of`; less one, as a share of what can be
    lidar       discerned   the same of directions in which samples differ more than their views do (`lidar`), of
                            `lidar_of`. Views that share nothing have a high one, too: read it beside `aligned`
    alignment   aligned     mean squared distance of two views of a sample, unit vectors: 4 … 0; 1 less its ratio to the
                            same of two samples, 0 where all are one
    uniformity  uniform     ln of the mean e^(−2 squared distance) of two samples, unit vectors: 0 where all are one; as
                            a share of that of directions drawn evenly (−3.94 in 128 dimensions)
                spread      `distributed.spread`: deviation of unit vectors, 1 where they point everywhere

alignment and uniformity: Wang and Isola 2020, arXiv 2005.10242. Of one thing (features of a probe, of an evaluation)
there are no views: rankme, uniformity and spread are told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl import distributed
from bigssl.nets.chance import noise

EPS = 1e-7
DELTA = 1e-4
SAMPLES = 256  # of all ranks, of which embeddings are looked at
SKETCH = SAMPLES // 4  # dimensions in which LiDAR can be told of so many
LEAST = 1e-5  # squared distance below which two vectors are one: float32 rounds 2 - 2 cos to a hundredth of it


def effective_rank(gram: Tensor) -> Tensor:
    """[] exp of the entropy of the singular values of X, from XᵀX or XXᵀ (float64)."""
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return _perplexity(singular)


def _perplexity(values: Tensor) -> Tensor:
    shares = values / values.sum().clamp(min=1e-300) + EPS
    return (-(shares * shares.log()).sum()).exp()


def rankme(features: Tensor) -> float:
    """Effective rank of features [N, D]: exp of the entropy of their normalised singular values.

    RankMe (Garrido et al. 2023, arXiv 2210.02885); between 1 (collapsed) and min(N, D). Float64, through the smaller
    of the two Gram matrices.
    """
    return effective_rank(_smaller_gram(features)).item()


def _smaller_gram(features: Tensor) -> Tensor:
    x = features.double()
    return x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T


def span(rank: Tensor, most: int) -> Tensor:
    """An effective rank from 1 to `most`, from 0 to 1."""
    return ((rank - 1) / max(most - 1, 1)).clamp(0, 1)


def lidar(views: Tensor) -> Tensor:
    """[] Effective rank of what tells samples apart more than views of one: LiDAR (Thilak et al. 2024, arXiv
    2312.04000), linear discriminant analysis with each sample as a class.

        exp of the entropy of the eigenvalues of W^(−1/2) B W^(−1/2), of which shares of their sum are taken (+ 1e-7)
        B = mean over samples of (μ_s − μ)(μ_s − μ)ᵀ,  W = mean over samples and views of (z − μ_s)(z − μ_s)ᵀ + δ I

    with δ = 1e-4 for embeddings that are scaled to a mean square of 1 beforehand, so that it means the same for all.
    The paper takes 10 to 50 views of 1,000 samples and more; of two views W has a rank of N at most. Of embeddings
    wider than N / 4, that many random projections are looked at: ranks above are not told apart.

    Args:
        views: [V, N, D], V ≥ 2.
    """
    z = views.double()
    width = max(z.shape[1] // 4, 1)
    if z.shape[2] > width:
        seed = torch.zeros(1, dtype=torch.int64, device=z.device)
        z = z @ noise.gaussian(seed, "lidar", z.shape[2] * width).view(-1, width).double()
    z = z - z.mean((0, 1))
    z = z / z.square().mean().sqrt().clamp(min=1e-150)
    centres = z.mean(0)  # [N, D]
    apart = (z - centres).flatten(0, 1)
    within = apart.T @ apart / len(apart) + DELTA * torch.eye(z.shape[2], dtype=z.dtype, device=z.device)
    values, vectors = torch.linalg.eigh(within)
    whitened = centres @ (vectors * values.rsqrt())  # rows of W^(−1/2), turned
    return _perplexity(torch.linalg.eigvalsh(whitened.T @ whitened / len(centres)).clamp(min=0))


def uniformity(gram: Tensor) -> Tensor:
    """[] ln of the mean over pairs of different rows of e^(−2 |x − y|²), from their products [N, N] (N ≥ 2), as unit
    vectors."""
    length = gram.diagonal().clamp(min=0).sqrt().clamp(min=1e-30)
    cosines = (gram / length / length[:, None]).clamp(-1, 1)
    count = len(gram)
    others = ~torch.eye(count, dtype=torch.bool, device=gram.device)
    near = (-2 * (2 - 2 * cosines)).masked_fill(~others, -math.inf)
    return near.flatten().logsumexp(0) - math.log(count * (count - 1))


def uniformity_of_even(width: int) -> float:
    """What `uniformity` is for directions drawn evenly in `width` dimensions: ln E e^(−4 + 4 cos) = −4 + ln of
    0F1(; width / 2; 4), the moment generating function of a cosine at 4."""
    term = total = 1.0
    for n in range(1, 60):
        term *= 4 / (n * (width / 2 + n - 1))
        total += term
    return -4 + math.log(total)


def evenness(value: Tensor, width: int) -> Tensor:
    """`uniformity`, from 0 to 1."""
    return (value / uniformity_of_even(width)).clamp(0, 1)


def alignment(views: Tensor) -> tuple[Tensor, Tensor]:
    """([], []): the mean squared distance of two different views of a sample as unit vectors, and 1 less its ratio to
    that of views of two samples.

    views: [V, N, D], V ≥ 2, N ≥ 2.
    """
    units = F.normalize(views, dim=2)
    count, samples, _ = units.shape
    total, of_sample = units.sum((0, 1)), units.sum(0)
    alike = (of_sample.square().sum() - units.square().sum()) / (count * (count - 1) * samples)
    others = (total.square().sum() - of_sample.square().sum()) / (count**2 * samples * (samples - 1))
    near, far = 2 - 2 * alike, 2 - 2 * others
    aligned = torch.where(far > LEAST, 1 - near / far.clamp(min=LEAST), torch.zeros_like(far))
    return near.clamp(min=0), aligned.clamp(0, 1)


@torch.no_grad()
def of_views(views: Mapping[str, Tensor], spectra: bool) -> dict[str, Tensor]:
    """{NAME/MEASURE: [] float32} of embeddings by name, the same on every rank. Collective; without a sync of the host
    where there are no spectra.

    Of the first SAMPLES of the batch, in equal parts from all ranks. It takes the products of them (SAMPLES² D: 2 to
    5 ms on one core for 128 to 512 dimensions), and with spectra the eigenvalues of one matrix of SAMPLES and two of
    SKETCH (another 10).

    Args:
        views: [V, B, D] each, V ≥ 2, of this rank, as many rows as on the others.
        spectra: rankme and lidar as well.
    """
    found: dict[str, Tensor] = {}
    for name, each in views.items():
        found |= {f"{name}/{measure}": value.float() for measure, value in _of(each, spectra).items()}
    return found


def _of(views: Tensor, spectra: bool) -> dict[str, Tensor]:
    most = -(-SAMPLES // distributed.world())
    mine = views[:, :most].detach().float().nan_to_num(0.0, 0.0, 0.0)  # of a loss that is none, something else is told
    z = distributed.gather_rows(mine.transpose(0, 1)).transpose(0, 1)  # [V, N, D]
    count, width = z.shape[1:]
    if count < 2:
        return {}
    even = uniformity(z[0] @ z[0].T)
    near, aligned = alignment(z)
    found = {"alignment": near, "aligned": aligned, "uniformity": even, "uniform": evenness(even, width)}
    found["spread"] = distributed.spread(mine.flatten(0, 1))
    if spectra:
        rank, discerned = effective_rank(_smaller_gram(z[0])), lidar(z)
        of, lidar_of = min(count, width), min(max(count // 4, 1), width)
        found |= {"rankme": rank, "of": torch.full_like(rank, of), "span": span(rank, of)}
        found |= {"lidar": discerned, "lidar_of": torch.full_like(rank, lidar_of)}
        found["discerned"] = span(discerned, lidar_of)
    return found
