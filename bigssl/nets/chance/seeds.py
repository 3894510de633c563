"""Seeds of samples, and the hash that makes randomness of them: the same wherever a sample is computed.

    key  = hash(seed of the row, a number: which call, which use)         int32, one a row
    bits = hash(key, number of the element in its row)                    int32, as many as wanted

Nothing is drawn, so there is no state to be saved, recomputing gives the same bits, and a sample has its own whoever
its neighbours and on however many ranks. dropout.py makes masks of it, noise.py numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ODD = 0x1E3779B97F4A7C15  # makes another seed of a seed; < 2^63, for int64


def another(seeds: Tensor, number: int | Tensor) -> Tensor:
    """Seeds for use `number` of the same samples: their views, the parts of a joint objective, the tokens of a text."""
    return seeds ^ (number * _ODD if isinstance(number, Tensor) else number * _ODD % 2**63)


def views(seeds: Tensor, rows: int) -> Tensor:
    """Seeds of `rows` rows that are k views of all samples, one after the other.

    Raises:
        RuntimeError: rows is not a multiple of the samples.
    """
    if rows % len(seeds):
        raise RuntimeError(
            f"{rows} rows from a batch of {len(seeds)} samples; allowed: a row per sample in the order of the batch, "
            f"or views of all samples one after the other (else what is random would depend on the number of ranks)"
        )
    return torch.cat([another(seeds, view) for view in range(rows // len(seeds))])


def row_keys(seeds: Tensor, number: int) -> Tensor:
    """int32, one per seed (int64, any shape): both halves of it and `number` go in."""
    low, high = seeds.to(torch.int32), (seeds >> 32).to(torch.int32)
    return mixed(low ^ mixed(high + number * 0x3C6EF372 % 2**31))


def element_bits(keys: Tensor, count: int) -> Tensor:
    """int32 [n] keys -> int32 [n, count]."""
    hashed = mixed(keys[:, None] + torch.arange(count, dtype=torch.int32, device=keys.device))
    return mixed(hashed.bitwise_xor_(keys[:, None]))


def mixed(x: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 (Appleby 2011), in int32 with wrap-around, in place of `x`. With one tensor beside
    it: new ones take a CPU twice the time."""
    beside = x >> 16
    x.bitwise_xor_(beside.bitwise_and_(0xFFFF)).mul_(-2048144789)
    torch.bitwise_right_shift(x, 13, out=beside)
    x.bitwise_xor_(beside.bitwise_and_(0x7FFFF)).mul_(-1028477387)
    torch.bitwise_right_shift(x, 16, out=beside)
    return x.bitwise_xor_(beside.bitwise_and_(0xFFFF))
