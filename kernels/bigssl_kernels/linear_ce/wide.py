"""Sums of many products into a 16-bit gradient, kept in 24 bits: float32 without the lower byte of its mantissa.

The upper 16 bits stand in the gradient's own memory until the last product, the next 8 in a byte beside it: half of
what a float32 copy of [T, H] would take, and 2^-16 of an entry lost by each addition where the gradient itself is
rounded to 2^-9 (bfloat16) or 2^-12 (float16).
"""

import torch
from torch import Tensor

HALF = 0x80  # of the last bit that is kept


def low_bytes(gradient: Tensor) -> Tensor:
    """Room for the 8 bits beside a gradient; [0] where it is wide enough to be summed in."""
    return gradient.new_empty(gradient.shape if gradient.element_size() == 2 else 0, dtype=torch.uint8)


def read(gradient: Tensor, low: Tensor) -> Tensor:
    """The sum so far, float32."""
    high = gradient.view(torch.int16).to(torch.int32) << 16
    return high.add_(low.to(torch.int32) << 8).view(torch.float32)


def write(total: Tensor, gradient: Tensor, low: Tensor) -> None:
    """Keep the sum so far, rounded. A NaN stays one: rounded up, its bits could become those of a number."""
    bits = total.contiguous().view(torch.int32)
    bits = torch.where(total.isnan(), bits, bits + HALF)
    gradient.view(torch.int16).copy_(bits >> 16)
    low.copy_((bits >> 8) & 0xFF)


def add(product: Tensor, gradient: Tensor, low: Tensor, first: bool, last: bool) -> None:
    """gradient += product, over many calls: the first finds nothing there, the last leaves the rounded sum."""
    if not low.numel():
        gradient.copy_(product) if first else gradient.add_(product)
        return
    total = product.float() if first else read(gradient, low).add_(product)
    gradient.copy_(total) if last else write(total, gradient, low)
