"""Noise on the device by sample, not by rank: a function of (seed of the sample, name of the use, element).

    seeds = batch[SEEDS]                                      int64 [B], which the loader adds to every batch
    hidden = noise.orders(seeds, "mask", patches)             [B, patches]

Two ranks have what one has, a resumed run what the first had, recomputing (activation checkpointing) what was computed;
torch's generators are not touched. Names keep uses apart: of one name and the same seeds, the same noise. Views and
repetitions of a sample have seeds of their own (`seeds.views`, `seeds.another`). Element k does not depend on how many
there are. Everything is float32 or int64, also under autocast, and works on shapes alone (`meta`, FakeTensor).

Resolution: uniform 2^-24; gaussian up to 6.7 standard deviations; gumbel from -2.9 to 22. A row has a key of 32 bits,
so that among 4,096 samples two have the same noise once in 500 batches.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from bigssl.nets.chance.seeds import element_bits, row_keys

_BELOW_ONE = 1 - 2**-24  # the largest float32 below 1


def uniform(seeds: Tensor, use: str, count: int) -> Tensor:
    """int64 [...] seeds -> float32 [..., count], uniform over the multiples of 2^-24 in [0, 1)."""
    return (_bits(seeds, use, count) >> 7).float().mul_(2**-24)


def gaussian(seeds: Tensor, use: str, count: int) -> Tensor:
    """int64 [...] seeds -> float32 [..., count] of mean 0 and variance 1 (Box and Muller 1958)."""
    turn = uniform(seeds, f"{use}/turn", count)
    return (-2 * _part(seeds, f"{use}/radius", count).log()).sqrt() * (2 * math.pi * turn).cos()


def gumbel(seeds: Tensor, use: str, count: int) -> Tensor:
    """int64 [...] seeds -> float32 [..., count], −ln(−ln u): `(logits + gumbel).argmax(-1)` is a draw by softmax of the
    logits (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030)."""
    return -exponential(seeds, use, count).log()


def exponential(seeds: Tensor, use: str, count: int) -> Tensor:
    """int64 [...] seeds -> float32 [..., count], > 0, of mean 1; finest near 0, where the largest gumbel noise comes
    from."""
    return _part(seeds, use, count).clamp_(max=_BELOW_ONE).neg_().log1p_().neg_()


def orders(seeds: Tensor, use: str, count: int) -> Tensor:
    """int64 [...] seeds -> int64 [..., count], a permutation of range(count) for each: its first k are k different
    elements by chance, its `argsort` says at which place of it each element stands."""
    return _bits(seeds, use, count).argsort(dim=-1, stable=True)  # equal bits: the same order on every device


def _part(seeds: Tensor, use: str, count: int) -> Tensor:
    """float32 [..., count], uniform in (0, 1]: 2^-32 and on in steps of 2^-31, as far as float32 tells them apart."""
    return _bits(seeds, use, count).float().add_(0.5).mul_(2**-31)


@torch.no_grad()
def _bits(seeds: Tensor, use: str, count: int) -> Tensor:
    """int32 [..., count], 31 random bits each."""
    keys = row_keys(seeds, zlib.crc32(use.encode()))
    return (element_bits(keys.flatten(), count) & 0x7FFFFFFF).view(*seeds.shape, count)
