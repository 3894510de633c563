"""Blocks of the linear cross-entropy kernels, one per architecture, kernel and width of an element.

The products walk over features or classes in blocks, so that one block serves every width of a model.
"""

import csv
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bigssl_kernels.configs import FALLBACK, Block, architecture, tuned
from bigssl_kernels.contrastive.similarity_triton import _seconds


def _table() -> dict[tuple[str, str, int], Block]:
    with (Path(__file__).parents[1] / "tables" / "linear_ce.csv").open() as file:
        _, *lines = csv.reader(file)
    return {(arch, kernel, int(width)): Block(*map(int, rest)) for arch, kernel, width, *rest in lines}


SHIPPED = _table()


def block_for(kernel: str, data: Tensor, dtype: torch.dtype, launch: Callable[[Block], object] | None = None) -> Block:
    """The block of "ce_statistics", "ce_panel" or "ce_product" for products in `dtype` on the device of `data`.

    `launch` runs a block; while tuning it is timed. None where it must not be repeated.
    """
    shipped = SHIPPED.get((architecture(data.device), kernel, dtype.itemsize), FALLBACK)
    others = functools.partial(_candidates, kernel, dtype.itemsize)
    time = None if launch is None else _seconds(launch)
    return tuned(f"{kernel}/{dtype}", data.device, shipped, others, time)


def _candidates(kernel: str, width: int) -> list[Block]:
    """Blocks worth timing: every block that is shipped for this kernel and width of element, and the fallback."""
    return [*(block for (_, name, size), block in SHIPPED.items() if (name, size) == (kernel, width)), FALLBACK]
